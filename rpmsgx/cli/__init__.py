"""The rpmsgx command: one module per subcommand."""
