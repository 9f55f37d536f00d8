"""Methods: one file per question that a researcher asks, with the job that answers it.

A long job lies beside its question, as ``<verb>_job.py``. The questions by kind:

patching: what changes when a part is replaced by another run, or taken out?

==========================  ====================================================================
`activation_patching`       which parts carry the difference between two runs
`attribution_patching`      the same for all parts at once, to first order
`path_patching`             which parts read what which parts write
`ablation`                  which parts the behaviour needs, one by one or several together
==========================  ====================================================================

direct: what does each part write straight toward the next token?

==========================  ====================================================================
`direct_logit_attribution`  toward the answer
`next_token_attribution`    toward the token that really follows, at every position
`logit_lens`                what the model would say if it ended at a layer
`direction`                 the direction that is read, and the final stream along it
`decomposition`             a decomposition of the residual stream: what is sent, and read back
==========================  ====================================================================

attention: where do heads look, what do they make of it, and why do they look there?

==========================  ====================================================================
`attention_patterns`        where they look
`detect_heads`              which are induction heads, previous-token heads, ...
`copying`                   which write the token that they read; name movers
`decompose_attention`       what a head's attention scores are made of
==========================  ====================================================================

weight_circuits: what are heads wired to do, read off their weights?

==========================  ====================================================================
`ov_qk`                     what a head does with every token of the vocabulary
`weight_circuit`            a circuit of weights as a value that answers questions
`composition`               which heads are wired to read which earlier heads
`head_weights`              one head's weights, brought here
`answer_direction`          what of the residual stream says one answer rather than another
==========================  ====================================================================

behaviour: what does the model say and hold, with nothing changed in it?

==========================  ====================================================================
`inspect_prompt`            what it expects at each token of an answer
`generate`                  how it goes on
`compare_runs`              how differently it continues two prompts
`most_frequent_answers`     which words its answers begin with
`capture`                   the values of activations
==========================  ====================================================================

`nnattr.calls.registry` has a row for each.
"""
