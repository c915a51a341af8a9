"""MLflow as a view of the trial records: what is on disk is the truth, this can be thrown away and replayed.

    experiment = protocol      parent run = cell (attack x defense)      child run = trial, one per record key

`server` says where runs are kept, `mapping` what of a record goes into a run, `book` how an experiment is written, and
`sync` brings a store in step. The library is imported when it is first needed. In here, too, `import mlflow` means it.
"""
