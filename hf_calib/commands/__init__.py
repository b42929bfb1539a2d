"""The commands of `hf-calib`, one room each: `prepare` reads the arguments, checks the call and returns the work."""
