"""Measure an overconfident model, repair it with RCFT, measure it again."""

from toy_model import CPU, PROMPT, WORLD, make_models, measure

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer


def main():
    # Your own models and questions: reference, model = "org/sft-model", "org/aligned-model"
    # and load_questions("train.parquet")
    reference, model = make_models()
    train, test = WORLD.questions(1000, split="train"), WORLD.questions(2000)

    measure("before", model, test)
    args = CalibratedSFTConfig(
        "outputs/repaired", objective="rcft", reference_model_name_or_path=reference, learning_rate=3e-4,
        num_train_epochs=3, per_device_train_batch_size=32, **PROMPT, **CPU,
    )  # fmt: skip
    trainer = CalibratedSFTTrainer(model, args, train_dataset=train)
    trainer.train()
    trainer.save_model()
    measure("after", "outputs/repaired", test)


if __name__ == "__main__":
    main()
