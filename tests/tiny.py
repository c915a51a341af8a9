"""A study that runs in seconds: the quick protocol cut down."""

SETS = [
    "train.epochs=2",
    "train.batch=32",
    "dataset.train_per_class=10",
    "dataset.test_per_class=5",
    "threat.surrogates=2",
    "threat.budget=0.05",
]
ATTACK_SETS = ["attack.steps=3", "attack.restarts=1"]
