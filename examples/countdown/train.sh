#!/bin/sh
# From the model that comes with the package to one that searches in paths, in two rounds:
# problems, weights, a folder that engines serve.
# Run it in the repository; what is there already is kept, so that it goes on where it was killed.
set -eu
here=examples/countdown
scripts=examples/arithmetic
out=build/countdown
mkdir -p $out/second
learn() { # FOLDER SEED MODEL CONFIGS: a round
    folder=$1 seed=$2 model=$3
    shift 3
    [ -e $folder/train.jsonl ] || python $scripts/generate.py $folder/train.jsonl --task countdown --count 10000 --seed $seed
    mvspec compile $folder/train.jsonl --tokenizer runtime/tasks/arithmetic_model -o $folder/train
    mvspec train fit "$@"
    mvspec train export $folder/checkpoints -o $model --dtype bfloat16
}
learn $out 0 $out/first --config $here/tiny.yaml
learn $out/second 1 $out/model --config $here/tiny.yaml --config $here/second.yaml
python $scripts/evaluate.py $out/model --task countdown
