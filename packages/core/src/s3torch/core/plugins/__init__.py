"""The plugin system: hooks, and how plugins are found."""
