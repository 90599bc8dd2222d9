"""A transformer of Hugging Face under its Trainer: one added line."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import bll

torch.manual_seed(0)
tokens = torch.randint(4, 16, (512, 8))
rows = [{"input_ids": row, "labels": row[0] % 4} for row in tokens]
config = BertConfig(vocab_size=16, hidden_size=48, num_hidden_layers=3, num_labels=4)
model = BertForSequenceClassification(config)
model = bll.wrap(model, num_classes=4, example={"input_ids": tokens[:2]})  # the added line
options = {"max_steps": 60, "learning_rate": 3e-3, "save_strategy": "no"}
trainer = Trainer(model, TrainingArguments("runs/trainer", **options), train_dataset=rows)
trainer.train()
print(f"evaluation loss {trainer.evaluate(rows)['eval_loss']:.3f}")
