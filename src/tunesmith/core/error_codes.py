"""The stable codes that errors carry, for programs and for searching. A code never changes its meaning; messages may.

A code names one kind of mistake. Several places may raise it. The sections follow the folders of the package.
"""

ERROR_CODES = {
    # The classes of errors (errors.py): what an error has without a code of its own.
    "error": "Anything that has no code of its own.",
    "recipe": "The recipe or the command line is wrong.",
    "data": "The data is wrong.",
    "verdict": "The verdict does not allow promotion.",
    "does-not-fit": "Memory or disk does not suffice.",
    "damaged-file": "A stored file is damaged or has been altered.",
    "non-finite": "Loss or gradient became NaN or infinite.",
    "interrupted": "Stopped on request; the same command resumes.",
    "process-lost": "Another process of the run is gone or hangs; the same command resumes.",
    # core and cli
    "usage": "The command line is wrong: an unknown name, a missing or extra argument, or contradicting options.",
    "no-home": "This user has no home folder, and no variable names the cache or the registry.",
    "not-found": "A file or folder does not exist.",
    "exists": "The file to write exists already; it is never overwritten.",
    "permission": "A file or folder may not be read or written, or is on a read-only disk.",
    "wrong-path": "A path cannot be used: a folder where a file is needed, a name that is too long, a loop of links.",
    "missing-package": "A Python package that this command needs is not installed.",
    "encoding": "Text is not in the encoding that it should be in.",
    "locked": "Another process is writing to the run, the cache or the registry.",
    "not-evaluated": "The run has no verdict yet.",
    "stopped": "Stopped by Ctrl-C outside a run.",
    "unexpected": "A fault in tunesmith or in a library; the message names a log file with the traceback.",
    "damaged-verdict": "A stored verdict lacks a value, or two of its values contradict each other.",
    # recipe
    "unknown-key": "The recipe has no such key, or not in this kind of section.",
    "missing-key": "A required key is missing.",
    "wrong-value": "The value of a key has the wrong type or is not allowed.",
    "wrong-template": "A template has a syntax error or no column.",
    "no-effect": "A setting would have no effect.",
    "contradiction": "Two settings exclude each other.",
    "not-measured": "A setting names a metric that the recipe does not measure.",
    "unreachable-threshold": "No change of the metric can exceed the threshold.",
    "sharding-unsupported": "The model, its tuning method or its optimizer cannot be sharded.",
    "unsafe-text": "A text for a shell script has characters with a special meaning there.",
    "wrong-override": "An argument is not `key=value`, or its key is below a value instead of a section.",
    "not-yaml": "The file is not YAML, or not a mapping of keys.",
    "unsupported-yaml": "The recipe has a tag, or is in another version of YAML than 1.2.",
    "yaml-escape": "Double quotes have turned a backslash into an escape that cannot have been meant.",
    "recipe-too-large": "The recipe is too large or nested too deeply, or its aliases expand to too much.",
    "unknown-template": "There is no template of this name for `tunesmith init`.",
    # fetch
    # architecture
    "not-causal": "The model sees later tokens, so it cannot be trained to predict them.",
    # tasks
    # data
    "packing-unsupported": "The recipe packs rows, and the model cannot keep packed rows apart.",
    "sharded-generation": "A sharded encoder-decoder model cannot generate answers during training.",
    "too-many-tokens": "A row has more tokens than the model has positions.",
    # scoring
    "unknown-metric": "No built-in metric has this name, and it is not the name of a custom metric.",
    "metric-needs-model": "The metric is computed from likelihoods, which need the model.",
    "no-database": "The metric `execution` has no SQLite file.",
    "unreadable-database": "The SQLite file for `execution` is missing, is not a database, or is incomplete.",
    "reference-query-failed": "A reference query does not run, or its result is too large.",
    "reference-not-json": "A reference for `json_field_f1` is not JSON.",
    "sql-worker": "The process that runs SQL for `execution` did not start.",
    "unscorable-references": "The primary metric gives 0 for every answer on more than half of the rows.",
    "unequal-lengths": "Predictions, references, scores or weights have different lengths.",
    "not-text": "A prediction or a reference is not text.",
    "not-a-number": "A score or weight is not a finite number.",
    "custom-metric-not-found": "There is no such module or function for a custom metric.",
    "custom-metric-shadowed": "An installed module has the same name as the module of a custom metric.",
    "custom-metric-invalid": "A custom metric cannot be called with two lists, or has a wrong `higher_is_better`.",
    "custom-metric-failed": "A custom metric, or the import of its module, raised an error or returned wrong values.",
    # model, kernels and distributed
    "bad-rank": "The environment variables of the launcher name an impossible rank.",
    "uneven-processes": "Machines have different numbers of processes, and `launch.sharding: node` needs equal ones.",
    "ranks-differ": "The ranks of a run have different inputs or versions of tunesmith.",
    "port-in-use": "Another program uses the port at which the ranks of a run meet.",
    # inference and evaluate
    # train
    "crash-loop": "Training was killed twice at the same step.",
    "no-intact-checkpoint": "All checkpoints of the run are damaged.",
    "wrong-optimizer-state": "A stored optimizer state is incomplete or belongs to another model.",
    # registry and promote
    "bad-name": "A name is not valid for a registered model or an alias.",
    "bad-reference": "A text is not a reference to a registered version, such as `NAME@ALIAS` or `NAME@3`.",
    "not-in-registry": "The registry has no such model, version or alias; the hint lists what it has.",
    "bad-version-folder": "A folder cannot become a version: it is empty, or holds links, special files or odd names.",
    "alias-moved": "The alias does not point at the expected version; another process may have moved it.",
    "alias-in-use": "The version cannot be deleted because an alias points at it.",
    "no-earlier-version": "There is no earlier version to roll back to.",
    "force-reason": "Force without a reason, or a reason without force.",
    "registry-schema": "Another version of tunesmith wrote the registry's database.",
    "registry-unusable": "The registry's database cannot be opened.",
    # pipeline, plan, slurm and track
    "inputs-changed": "The inputs of a finished or interrupted stage have changed, and its result is never replaced.",
    "settings-changed": "The run was started with other settings, which cannot change.",
    "other-run": "The folder holds the run of another recipe.",
    "folder-not-empty": "The folder is not empty, and holds no run or sweep.",
    "no-weights": "The folder of a base holds no weights.",
    "no-slurm": "Slurm is not installed on this machine.",
    "slurm-refused": "Slurm refuses a job.",
    "slurm-failed": "A command of Slurm failed or did not answer.",
    "script-path": "The path of a run has characters that are not allowed in a batch script.",
    "not-for-slurm": "The recipe's `launch` does not ask for Slurm.",
    "already-queued": "The run has jobs that wait or run.",
    "not-queued": "The run has no job that waits or runs.",
    "stage-failed": "The job of a stage failed; its log has the error.",
    # sweep
    # demo
    "generated-rows": "The generator of the demo cannot give that number of rows.",
}
