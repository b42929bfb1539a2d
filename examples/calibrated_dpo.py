"""Align a model with DPO and with calibrated DPO, and compare the calibration of both."""

from toy_model import CPU, PROMPT, WORLD, make_models, measure

from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer


def main():
    # Your own model before alignment, preference pairs (prompt, chosen, rejected and, if known, the agreement of
    # annotators as preference_probability) and load_questions("train.parquet")
    model, _ = make_models()
    pairs, questions, test = WORLD.preference_pairs(960), WORLD.questions(500, split="train"), WORLD.questions(2000)

    measure("before", model, test)
    plain = {"beta": 0.1, "lambda_pref": 0.0, "preference_probability_column": None}
    calibrated = {"beta": 10.0, "lambda_options": 1.0, "option_likelihood_weight": 0.3}
    for name, settings in {"dpo": plain, "calibrated_dpo": calibrated}.items():
        args = CalibratedDPOConfig(
            f"outputs/{name}", learning_rate=3e-4, num_train_epochs=1, per_device_train_batch_size=64,
            **settings, **PROMPT, **CPU,
        )  # fmt: skip
        options = questions if args.lambda_options else None
        trainer = CalibratedDPOTrainer(model, args=args, train_dataset=pairs, option_dataset=options)
        trainer.train()
        trainer.save_model()
        measure(name, f"outputs/{name}", test)


if __name__ == "__main__":
    main()
