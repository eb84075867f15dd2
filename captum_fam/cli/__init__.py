"""The program ``captum-fam``: :mod:`captum_fam.cli.main` starts it, and every subcommand has its own module."""
