"""What else could have said which checkpoint to take: cheap criteria that free energy has to beat.

Each is read off one checkpoint and the pretraining data. The training and validation losses, the
simplest of all, come with the ranking itself.

    features.py              what enters the head
    geometric_complexity.py  how fast the features change with the inputs
    neural_collapse.py       how small the classes are among them
    gaussian_perturbation.py  the loss after noise on the weights
    columns.py               all of them, as columns of the ranking
"""
