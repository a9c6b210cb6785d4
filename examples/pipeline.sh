#!/bin/sh
# The whole pipeline, one command a stage, on a folder with one folder of images for each class.
#
#   sh examples/pipeline.sh LABELLED_FOLDER RUN_FOLDER [more settings of distill]
set -eu
images=$1
runs=$2
shift 2

distilhash distill "$images" --output "$runs/student" "$@"
distilhash hash "$images" --backbone "$runs/student" --output "$runs/hasher" --bits 64 --batch-size 16
for part in query database; do
  distilhash encode "$runs/hasher" "$images" --part "$part" --output "$runs/$part.safetensors"
done
distilhash evaluate "$runs/query.safetensors" "$runs/database.safetensors"
distilhash profile "$runs/hasher"
