#!/bin/sh
# The small model from nothing: tokenizer, problems, weights, a folder that engines serve.
# Run it in the repository; what is there already is kept, so that it goes on where it was killed.
set -eu
out=build/arithmetic
here=examples/arithmetic
python $here/vocabulary.py $out/tokenizer
for split in train validation; do
    count=15000
    [ $split = train ] || count=100
    [ -e $out/$split.jsonl ] || python $here/generate.py $out/$split.jsonl --split $split --count $count
    mvspec compile $out/$split.jsonl --tokenizer $out/tokenizer -o $out/$split
done
[ -e $out/test.jsonl ] || python $here/generate.py $out/test.jsonl --split test --count 1000 --questions
mvspec train fit --config $here/tiny.yaml
mvspec train export $out/checkpoints -o $out/model --dtype bfloat16
python $here/evaluate.py $out/model
