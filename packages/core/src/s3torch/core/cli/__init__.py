"""The command line ``s3torch`` (extra ``cli``): what a user types, and what packages add to it.

Nothing else imports this folder, so that only the command needs click and rich. Packages that add commands
or checks import ``s3torch.core.cli.commands`` and ``s3torch.core.cli.findings``.
"""
