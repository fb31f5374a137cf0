"""Where prompts come from and which is next.

`datasets` opens a data set and keeps held-out prompts apart; `letters` is the data set of the first sample; `tokens`
turns prompts into ids and answers into text; `policy` is the port of sampling policies, `uniform` the first of them.
"""
