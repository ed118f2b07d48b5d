"""Stage 2: from the pretrained weights again, training the selected entries alone.

training.py         `finetune`, from arguments to a result
training_loop.py    the loop: schedule, early stopping, history
looks.py            what is evaluated from time to time: validation data, metrics
trained_entries.py  masks to indices, and an optimiser's state for the trained entries alone
finetune_result.py  the result: weights, history, delta
lora.py             adapters of low rank, for comparison
peft_export.py      `save_adapter`: the result as an adapter of Hugging Face's peft
huggingface.py      `MaskedTraining`: the same entries under Hugging Face's Trainer
"""
