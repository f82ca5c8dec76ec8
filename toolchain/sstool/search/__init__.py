"""The search for a draft: what it skips, and what it copies in int4, to give the most tokens per second.

Its chapters, in the order in which `run.py` goes through them:

* `texts`: the calibration texts, the model's own continuations of prompts.
* `speed_model`: the latency table, which says what draft steps and verify passes take on this machine.
* `drafts`: a candidate, as a row of zeros and ones and as a real draft engine.
* `sources`: who proposes candidates: first the warm starts, then Ax.
* `scoring`: the modelled speed of one candidate, from its drafting on the texts and the latency table.
* `explore`: the loop over candidates, until the trials or the budget are used up.
* `finals`: the best candidates, timed head to head on held-out prompts, and the conclusion.
* `log`: the records on disk, from which a search resumes and a report is drawn.

`settings.py` holds what a user may set, `budget.py` plans the calibration texts by time and memory,
`clock.py` watches the budget, and `progress.py` reports progress.
"""
