"""Which checkpoint, when there are a few labels: what could tell, side by side.

choice.py               choose_checkpoint: the call, and which architecture a checkpoint is of
comparison.py           the candidates of one architecture: rows, order, recommendation
criteria.py             their names and directions, and the columns of the cheap ones
consensus.py            the mean place in the lists of those that have a vote
recommendation.py       which one to take, how sure that is, and whether the criteria agree
sampled.py              the downstream free energy of all, at one γ
linearized.py           free energy and predictions of the linearised network, in closed form
tangents.py             the Gaussian prior of its outputs
gaussian_process.py     their evidence, and each label predicted by the others
zero_shot.py            loss and score of the checkpoint as it is
logme.py                evidence of a linear regression on the features
neighbours.py           the nearest labelled neighbours, leave one out
ridge_probe.py          a linear probe, leave one out
pactran.py              a PAC-Bayes bound on a linear probe
short_finetunes.py      cross-validated fine-tunes, cut short by halves
prediction_scores.py    accuracy or rank correlation, with an error bar
jackknife.py            error bars over the labels for what has none of its own
labels.py               targets as numbers, in folds that share the classes out
"""
