# The README's first command, on a fresh machine: docker build --tag charjax . && docker run charjax
# Another command: docker run --volume "$PWD:/texts" --workdir /texts charjax charjax train a.txt --out run
FROM python:3.12-slim
# The compiler of the CPU kernel.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -r /var/lib/apt/lists/*
WORKDIR /charjax
COPY . .
RUN python3 -m venv .venv && .venv/bin/pip install --quiet .
ENV PATH="/charjax/.venv/bin:$PATH"
CMD .venv/bin/charjax train data_files/shakespeare.txt --out runs/shakespeare --hidden-dim 256 --hidden-layers 1 --batch-size 32 --learning-rate 0.008 --epochs 4 && .venv/bin/charjax sample runs/shakespeare --context "OTHELLO." --temperature 0.7
