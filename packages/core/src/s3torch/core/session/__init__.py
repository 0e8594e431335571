"""Where requests go and who signs them, resolved by botocore; only the runtime of a client imports it."""

from s3torch.core.session._session import AwsSession

__all__ = ["AwsSession"]
