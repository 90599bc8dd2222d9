"""A transformer of Hugging Face under its Trainer: one added line."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import bll

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
config = BertConfig(vocab_size=16, num_hidden_layers=3, num_labels=4, **sizes)
tokens = torch.randint(4, 16, (512, 8))
rows = [{"input_ids": row, "labels": row[0] % 4} for row in tokens]

model = BertForSequenceClassification(config)
model = bll.wrap(model, num_classes=4, example={"input_ids": tokens[:2]})  # the added line
options = {"max_steps": 60, "learning_rate": 3e-3, "per_device_train_batch_size": 32}
quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
args = TrainingArguments("runs/trainer", **options, **quiet)
trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
trainer.train()
print(f"loss per block: { {k: round(v, 3) for k, v in model.bll.metrics().items()} }")
print(f"evaluation loss {trainer.evaluate()['eval_loss']:.3f}")
