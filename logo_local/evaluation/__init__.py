"""`logo-local eval`: what each way of choosing adapters is worth on prompts with known answers.

    data     the prompts, from JSON lines        metrics  an answer against the accepted ones
    methods  who answers: weights by adapter     store    what is done already, on disk
    runner   prompts through an engine           fusion   averaged parameters instead of outputs
    summary  means, intervals, the table         plots    the paper's figures 2 to 5

nltk and rouge_score are imported by `metrics` and matplotlib by `plots`, each when it is first
asked for something: they come with `pip install '.[eval]'` in the clone.
"""
