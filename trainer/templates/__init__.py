"""Templates: which text a conversation becomes, which of it is learnt, and where its control tokens stand.

`base.py` says what a template is; each other file is one of them; `find.py` finds the one a model uses. Turning parts
into token ids is `trainer/template.py`.
"""
