"""What a finished answer is worth: `port` says what a reward is; one file a kind; `choose` picks by the job."""
