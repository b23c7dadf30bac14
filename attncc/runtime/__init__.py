"""From a generated file to a call: load it, compile it, keep it on disk, check arguments, launch."""
