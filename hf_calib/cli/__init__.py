"""Commands of `hf-calib`, one module each."""
