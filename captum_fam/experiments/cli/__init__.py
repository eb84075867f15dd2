"""The subcommands of the experiments."""
