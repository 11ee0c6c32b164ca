# Two commands do everything: `make demo` and `make test`. They set up .venv first, and only when something changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lab course clean

demo: $(VENV)/demo.done
	$(BIN)/python -m trtkit demo

test: $(VENV)/test.done
	$(BIN)/ruff check . && $(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks

course: $(VENV)/demo.done
	$(BIN)/python -m trtkit lessons run

lab: $(VENV)/lab.done
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf build $(VENV)

# uv resolves the same constraints ten times faster than pip; where the machine lacks it, pip puts it into the venv.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo 'make: python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv'; exit 1; }

$(VENV)/uv.done: $(BIN)/python
	command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

INSTALL = PATH="$$PATH:$(BIN)" uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

$(VENV)/demo.done: pyproject.toml constraints.txt $(VENV)/uv.done
	$(INSTALL) --editable .
	touch $@

$(VENV)/test.done: pyproject.toml constraints.txt $(VENV)/uv.done
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/demo.done

$(VENV)/lab.done: pyproject.toml constraints.txt $(VENV)/uv.done
	$(INSTALL) --editable '.[lab]'
	touch $@
