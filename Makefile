# Short names for what is done often, in the environment that the README's test command makes.
.PHONY: check test laws docs orders bench constraints
bin := .venv/bin

check: ## format, lint, types, floors
	bash .ci/check

test: ## the default suite
	$(bin)/pytest -n 2

laws: ## the laws and all slow tests, with many more examples
	$(bin)/pytest -n 2 --long

docs: ## strict: a reference that leads nowhere is an error
	$(bin)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(bin)/sphinx-build -n -W --keep-going -b html docs docs/_build/html

orders: ## the table of orders of the wrappers, for docs/wrappers.md
	@$(bin)/python -c 'from purerun.wrappers.orders import table; print(table())'

bench: ## beside hand-written loops and peers; alone on the machine, please
	$(bin)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(bin)/python benchmarks/overhead.py
	$(bin)/python benchmarks/overhead.py --wrappers
	$(bin)/python benchmarks/compile.py
	$(bin)/python benchmarks/sweep.py
	$(bin)/python benchmarks/parallel.py
	$(bin)/python benchmarks/data.py
	$(bin)/python benchmarks/saving.py
	$(bin)/python benchmarks/resume.py

constraints: ## the newest versions that pyproject.toml allows, every extra included; torch is raised by hand
	python3 -m venv build/newest
	build/newest/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)" -e '.[test,bench,docs]'
	{ sed -n '/^#/p' constraints.txt; build/newest/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
