"""`logo-local eval`: compares methods of choosing adapters on prompts with known answers.

    data     the prompts, from JSON lines        metrics  scores of an answer
    methods  the methods: weights by adapter     store    completed results, on disk
    runner   evaluates prompts with an engine    fusion   averaged parameters instead of outputs
    summary  means, intervals, the table         plots    the paper's figures 2 to 5

nltk and rouge_score are imported by `metrics` and matplotlib by `plots`, each on first use:
install them with `pip install '.[eval]'` in the clone.
"""
