"""The command ``captum-fam``: :mod:`captum_fam.cli.main` reads it, every subcommand is a module of its own."""
