#!/bin/sh
# From the model that comes with the package to one that searches in paths: problems, weights, a
# folder that engines serve.
# Run it in the repository; what is there already is kept, so that it goes on where it was killed.
set -eu
out=build/countdown
scripts=examples/arithmetic
mkdir -p $out
[ -e $out/train.jsonl ] || python $scripts/generate.py $out/train.jsonl --task countdown --count 10000
mvspec compile $out/train.jsonl --tokenizer runtime/arithmetic_model -o $out/train
mvspec train fit --config examples/countdown/tiny.yaml
mvspec train export $out/checkpoints -o $out/model --dtype bfloat16
python $scripts/evaluate.py $out/model --task countdown
