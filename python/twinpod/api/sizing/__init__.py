"""How much memory a job needs, before anything is started: `twinpod fit`. Pure: numbers in, numbers out."""
