"""The commands of `gradellm`, a file each."""
