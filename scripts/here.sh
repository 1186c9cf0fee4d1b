# Sourced by scripts with settings in the environment: relative paths are those of the folder that the caller stands in,
# and the script goes on in the project's root.
for _name in DATA OUT WORK ${!CHECKPOINT@}; do
    if [ -n "${!_name:-}" ]; then export "$_name=$(realpath -m -- "${!_name}")"; fi
done
# A name alone is looked up in PATH; links stay, because a virtual environment is known by the place of its link.
if [[ ${PYTHON:-} == */* ]]; then export PYTHON=$(realpath -sm -- "$PYTHON"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
