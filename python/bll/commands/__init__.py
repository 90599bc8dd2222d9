"""What the subcommands of ``bll`` do; imported only when they are run."""
