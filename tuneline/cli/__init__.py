"""The command line: arguments in, one library call, facts out."""
