"""`hf-calib evaluate`: measure a model on option questions, or on questions that it answers in free text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .evaluate_arguments import EvaluateArguments
from .parser import CommandParser
from .served_arguments import HIDDEN, served_summary
from .short_answers import prepare_answers, takes_answers


_EXAMPLES = """\
examples:
  # score the letters of the options; the file has the columns question, choices, answer
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --output_dir before

  # score the texts of the options; 1,000 questions of ARC-Easy from the Hub
  hf-calib evaluate --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset allenai/ai2_arc \\
      --dataset_config ARC-Easy --scoring text --limit 1000 --output_dir before

  # decide the regime by the model before alignment
  hf-calib evaluate --model ./my-sft-model --dataset questions.parquet --output_dir reference
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --output_dir aligned \\
      --reference_predictions reference

  # a file with columns of other names, in which answers count from 1; see docs/guides/question-files.md
  hf-calib evaluate --model ./my-dpo-model --dataset exam.csv --answers_from 1 \\
      --columns "question=Prompt,A=First,B=Second,C=Third,answer=Gold"

  # short answers: the file has the columns question and answers (accepted texts); or options that are not shown
  hf-calib evaluate --model ./my-dpo-model --dataset short.jsonl --output_dir short
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --confidence likelihood p_true

  # on several GPUs
  accelerate launch -m hf_calib evaluate --model ./my-dpo-model --dataset questions.parquet

  # a model behind a server (vLLM, SGLang, TGI, llama.cpp); see docs/guides/served-models.md
  hf-calib evaluate --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-8B --dataset questions.parquet

writes to OUTPUT_DIR:
  results.json           every measure, flat; those of the subjects, if there are any, as group/<subject>/...
  predictions.npz        option_logits, probabilities, labels, ids, ...; an interrupted run resumes from it
  reliability, corp, groups (.png, .svg)
of short answers:
  answers.jsonl, samples.jsonl  what the model wrote; an interrupted run resumes from them
  graded.jsonl                  answers, whether they are right, confidences
  likelihood/, agreement/, p_true/  each with the files above; p_true/questions.parquet for restore and train
"""


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Load and check questions and model; the result predicts, prints and writes."""
    (args,) = CommandParser("evaluate", EvaluateArguments, "--model MODEL --dataset DATASET", _EXAMPLES).parse(argv)
    from ..data.files import load_records
    from ..evaluation.protocol import EvaluationProtocol
    from ..evaluation.tables import check_output_dir, evaluation_results, print_groups, print_table, write_evaluation
    from ..hub.saved_predictions import load_option_predictions

    output_dir = check_output_dir(args.output_dir)
    records = load_records(args.dataset, args.dataset_config, args.split)
    if takes_answers(args, records):
        return prepare_answers(args, records, output_dir)
    questions = args.questions(args.dataset, records=records)
    reference = load_option_predictions(args.reference_predictions) if args.reference_predictions else None
    if reference is not None and not args.drop_too_long:
        # That it has other questions is better said before the work.
        reference.matching(questions["id"][:], questions["answer"][:])
    model, tokenizer = args.load_asked()
    if tokenizer is not None:
        args.check_tokenizer(tokenizer, questions)

    def evaluate() -> None:
        from accelerate import PartialState

        from ..evaluation.details import details_sentences
        from ..evaluation.option_mass import mean_option_mass, small_mass_sentence

        predictions = args.predict(model, tokenizer, questions, output_dir / "predictions.npz")
        if not PartialState().is_main_process:
            return
        described = {"model": args.model, **EvaluationProtocol.of(args).statement(predictions, tokenizer)}
        if (mass := mean_option_mass(predictions)) is not None:
            described["option_mass"] = mass
        served = predictions.metadata.get("served", {})
        described |= {f"served/{name}": value for name, value in served.items() if name not in HIDDEN}
        options = {**args.measuring, "critical_accuracy": args.critical_accuracy, "alpha": args.alpha, "details": True}
        if predictions.subjects is not None and len(set(predictions.subjects.tolist())) > 1:
            options["groups"] = predictions.subjects
        results = evaluation_results(predictions, reference, **options)
        title = Path(args.model).name
        write_evaluation(output_dir, predictions, {**described, **results}, title, **args.measuring)
        print_table([{"stage": title, **results}])
        if "n_groups" in results:
            print_groups(results)
        if served:
            print(*served_summary(predictions), sep="\n")
        elif sentence := small_mass_sentence(predictions):
            print(sentence)
        for sentence in details_sentences(results):
            print(sentence)
        print(f"{results['regime']}: {results['explanation']}")
        print(f"recommended: {results['recommended_method']}    results: {output_dir}")

    return evaluate
