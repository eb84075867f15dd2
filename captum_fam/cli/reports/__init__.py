"""What the subcommand ``captum-fam report`` does: reading its options and lists, finding neighbors, making rows."""
