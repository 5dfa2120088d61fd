"""Tables for tests/mutants.py: pairs of settings to swap, and source texts with their faulty replacements.

The file exceeds 500 lines because it is one table.
"""

# Pairs of settings that a call could confuse. Both settings of a pair are swapped everywhere.
SWAPPED = {
    "Word2Vec": "window negatives, lr min_lr, sample ns_exponent, shrink_windows cbow_mean, cbow cbow_mean, "
    "cbow shrink_windows, hs cbow, epochs negatives, dim window, hs negatives_shared, sample lr",
    "Doc2Vec": "window negatives, lr min_lr, sample ns_exponent, shrink_windows dbow_words, tag_weight window, "
    "epochs negatives, dim window, hs negatives_shared, mode dm, shrink_windows negatives_shared, min_count window, "
    "sample min_lr, tag_weight negatives",
    "GloVe": "x_max alpha, symmetric distance_weighting, lr alpha, window epochs, vectors shuffle, memory_gb x_max",
    "Node2Vec": "p q, restart gamma, walk_length walks_per_node, window negatives, lr min_lr, sample ns_exponent, "
    "sample restart, epochs walks_per_node, hs negatives_shared, plus shrink_windows, q restart, p gamma, dim window, "
    "window walk_length, hs shrink_windows, shrink_windows negatives_shared",
    "LINE": "lr min_lr, negatives epochs, ns_exponent lr, dim negatives",
    "FullNetworkEmbedding": "lower upper, at pool, precision errors, batch workers, at errors, layers at",
    "LayerEmbedding": "at pool, views combine, l2 whiten, batch reduce, precision errors, batch workers, layer at",
    "Multimodal": "dim word_dim, hidden batch, margin temperature, k batch, lr weight_decay, clip dropout, "
    "bidirectional tune_words, bucketed distinct_images, text pooling, loss similarity, warmup patience, "
    "min_count max_words, batch k, lr clip, lr_drop patience, precision pooling, seed k, dropout temperature",
    "Phrases": "min_count threshold, scoring delimiter",
}

# Faults in shared Python code: (model whose tests run first, file, text, replacement). TESTS_OF adds the file's tests.
SHARED = {
    "draws of partial_fit are those of fit": (
        "Word2Vec",
        "training/sequences.py",
        "return self._step(sessions, [given] * len(sessions), state.before + epoch, first,",
        "return self._step(sessions, [given] * len(sessions), epoch, first,",
    ),
    "draws of partial_fit are those of fit, in Doc2Vec": (
        "Doc2Vec",
        "training/sequences.py",
        "return self._step(sessions, [given] * len(sessions), state.before + epoch, first,",
        "return self._step(sessions, [given] * len(sessions), epoch, first,",
    ),
    "negatives are those of the first epoch": (
        "Word2Vec",
        "training/sequences.py",
        'arrays["noise"] = self._pool(epoch, block)',
        'arrays["noise"] = self._pool(0, block)',
    ),
    "negatives are those of the first epoch, in Doc2Vec": (
        "Doc2Vec",
        "training/sequences.py",
        'arrays["noise"] = self._pool(epoch, block)',
        'arrays["noise"] = self._pool(0, block)',
    ),
    "negatives are those of the first buffer": (
        "Node2Vec",
        "training/sequences.py",
        'arrays["noise"] = self._pool(epoch, block)',
        'arrays["noise"] = self._pool(0, block)',
    ),
    "buffers of partial_fit are those of fit": (
        "Node2Vec",
        "training/sequences.py",
        "return self._step(sessions, next_buffer(number), number, 0, before)",
        "return self._step(sessions, next_buffer(number), number - state.before * n, 0, before)",
    ),
    "walks of partial_fit are those of fit": (
        "Node2Vec",
        "graphs/node2vec.py",
        "epoch, buffer = divmod(number, n_buffers)",
        "epoch, buffer = divmod(number, n_buffers)\n            epoch = epoch % self.epochs",
    ),
    "walks of each epoch are those of the first": (
        "Node2Vec",
        "graphs/node2vec.py",
        "walks.read(epoch, int(first[buffer])",
        "walks.read(0, int(first[buffer])",
    ),
    "edges of each buffer are those of the first": (
        "LINE",
        "graphs/line.py",
        "self._table.sample(n, seed, number)",
        "self._table.sample(n, seed, 0)",
    ),
    "both orders draw the same edges": (
        "LINE",
        "graphs/line.py",
        '_seed(self.seed, "edges " + order), number)',
        '_seed(self.seed, "edges"), number)',
    ),
    "an order of GloVe for all epochs": (
        "GloVe",
        "words/glove.py",
        "order = kernels.random_order(len(sizes), self.seed, state.before + epoch)",
        "order = kernels.random_order(len(sizes), self.seed, 0)",
    ),
    "parts of GloVe are shuffled as in the first epoch": (
        "GloVe",
        "words/glove.py",
        'job["epoch"] = state.before + epoch',
        'job["epoch"] = epoch',
    ),
    "lr is 0.05 in the record": (
        "GloVe",
        "words/glove.py",
        "            job[name] = getattr(self, name)",
        '            job[name] = 0.05 if name == "lr" else getattr(self, name)',
    ),
    "x_max and alpha swapped in the record": (
        "GloVe",
        "words/glove.py",
        "            job[name] = getattr(self, name)",
        '            job[name] = getattr(self, {"x_max": "alpha", "alpha": "x_max"}.get(name, name))',
    ),
    "the trainer takes all threads": (
        "Word2Vec",
        "training/sequences.py",
        "ThreadTuner(model.threads)",
        "ThreadTuner(None)",
    ),
    "the trainer takes all threads, in Node2Vec": (
        "Node2Vec",
        "training/sequences.py",
        "ThreadTuner(model.threads)",
        "ThreadTuner(None)",
    ),
    "the trainer counts another number of epochs": (
        "Word2Vec",
        "training/sequences.py",
        "self._dim, self._epochs = model.dim, model.epochs",
        "self._dim, self._epochs = model.dim, 5",
    ),
    "the trainer takes the CPU": (
        "Word2Vec",
        "training/sequences.py",
        "choose_device(model.device, run",
        'choose_device("cpu", run',
    ),
    "warmup is patience": (
        "Multimodal",
        "multimodal/trainer.py",
        "before + epoch < model.warmup else",
        "before + epoch < (model.patience or 0) else",
    ),
    "patience is warmup": (
        "Multimodal",
        "multimodal/trainer.py",
        "self.model._stale >= self.model.patience",
        "self.model._stale >= self.model.warmup",
    ),
    "the rate of towers is 0.0002": (
        "Multimodal",
        "multimodal/trainer.py",
        "epoch >= model.lr_drop else model.lr",
        "epoch >= model.lr_drop else 0.0002",
    ),
    "windows forget the settings of their names": (
        "Word2Vec",
        "training/sequences.py",
        "return cls(**named, **given)",
        'return cls(**{**dict.fromkeys(named, False), "window": 5}, **given)',
    ),
    "windows forget the settings of their names, in Node2Vec": (
        "Node2Vec",
        "training/sequences.py",
        "return cls(**named, **given)",
        'return cls(**{**dict.fromkeys(named, False), "window": 5}, **given)',
    ),
    "the rates are swapped": (
        "Word2Vec",
        "training/sequences.py",
        "lr_first=self.rates[0],\n            lr_last=self.rates[1],",
        "lr_first=self.rates[1],\n            lr_last=self.rates[0],",
    ),
    "the rate does not fall from epoch to epoch": (
        "Word2Vec",
        "training/sequences.py",
        "state.before + epoch, first, epoch * n_tokens)",
        "state.before + epoch, first, 0)",
    ),
    "the rate does not fall from buffer to buffer": (
        "LINE",
        "training/sequences.py",
        "before = epoch * per_epoch + int(edges[first])",
        "before = int(edges[first])",
    ),
    "the exponent of the negatives is dropped": (
        "Word2Vec",
        "training/sequences.py",
        "weights = noise_weights(part.outputs.counts, part.outputs.exponent)",
        "weights = noise_weights(part.outputs.counts, 0.75)",
    ),
    "the exponent of the negatives is dropped, in LINE": (
        "LINE",
        "training/sequences.py",
        "weights = noise_weights(part.outputs.counts, part.outputs.exponent)",
        "weights = noise_weights(part.outputs.counts, 0.75)",
    ),
    "the exponent is dropped in inference": (
        "Doc2Vec",
        "training/sequences.py",
        "kernels.NoiseTable(noise_weights(self.counts, self.exponent)) if",
        "kernels.NoiseTable(noise_weights(self.counts, 0.75)) if",
    ),
    "nothing is subsampled": (
        "Word2Vec",
        "training/sequences.py",
        'keep_thresholds(model.counts_, getattr(model, "sample", 0))',
        "keep_thresholds(model.counts_, 0)",
    ),
    "tags weigh as a word": (
        "Doc2Vec",
        "training/sequences.py",
        "repeated = part.tags.repeated(part.windows.tag_weight)",
        "repeated = part.tags.repeated(1)",
    ),
    "a shared negative has the whole weight": (
        "Word2Vec",
        "training/sampling.py",
        "return NegativeSharing(shared, centers, drawn, negatives / drawn)",
        "return NegativeSharing(shared, centers, drawn, 1.0)",
    ),
    "counts weigh the negatives wrongly": (
        "Word2Vec",
        "training/sampling.py",
        "logs = exponent * np.log(np.maximum(counts, 1))",
        "logs = -exponent * np.log(np.maximum(counts, 1))",
    ),
    "partial_fit forgets the epochs before": (
        "Word2Vec",
        "training/estimator.py",
        "Progress(before=before.before + before.epoch, losses",
        "Progress(before=before.epoch, losses",
    ),
    "partial_fit forgets the losses": (
        "GloVe",
        "training/estimator.py",
        ", losses=list(before.losses))",
        ")",
    ),
    "a run is resumed with other settings": (
        "LINE",
        "training/estimator.py",
        "if n not in free and before[n] != now[n]",
        "if False and n not in free and before[n] != now[n]",
    ),
    "a run is resumed with other data": (
        "LINE",
        "training/estimator.py",
        "if saved._fingerprint != corpus:",
        "if False:",
    ),
    "a refused fit forgets the model": (
        "Multimodal",
        "training/estimator.py",
        "            vars(self).clear()\n            vars(self).update(before)\n            raise",
        "            raise",
    ),
    "settings are checked after the model is changed": (
        "Word2Vec",
        "training/estimator.py",
        "plain_scalar(getattr(self, name)))\n        self._check()",
        "plain_scalar(getattr(self, name)))\n        self.words_ = []\n        self._check()",
    ),
    "numbers of numpy are kept": (
        "Word2Vec",
        "training/estimator.py",
        "setattr(self, name, plain_scalar(getattr(self, name)))",
        "setattr(self, name, getattr(self, name))",
    ),
    "new words get the first weights of others": (
        "Word2Vec",
        "training/estimator.py",
        "initial_weights(fresh, self.dim, self.seed, n_old, self._reach)",
        "initial_weights(fresh, self.dim, self.seed, 0, self._reach)",
    ),
    "rows stay when words move": (
        "Word2Vec",
        "training/estimator.py",
        "table[row[:n_old]] = self._tables[name]",
        "table[:n_old] = self._tables[name]",
    ),
    "Ctrl-C writes no checkpoint": (
        "Word2Vec",
        "training/loop.py",
        "if save and (stopped or time.monotonic()",
        "if save and (time.monotonic()",
    ),
    "a callable is not told": (
        "GloVe",
        "training/progress.py",
        "        yield progress\n",
        "        yield lambda status: None\n",
    ),
    "False shows lines too": (
        "Word2Vec",
        "training/progress.py",
        "elif progress is False or (progress is None and not terminal):",
        "elif progress is None and not terminal:",
    ),
    "auto is told where progress is False": (
        "Word2Vec",
        "training/loop.py",
        "if progress is not False:",
        "if True:",
    ),
    "the first weights are the same for every seed": (
        "GloVe",
        "training/tables.py",
        "philox = np.random.Philox(key=seed)",
        "philox = np.random.Philox(key=0)",
    ),
    "counts are those of the last corpus": (
        "Word2Vec",
        "training/tables.py",
        "total[place] += more_counts",
        "total[place] = more_counts",
    ),
    "words of the same count change places": (
        "Word2Vec",
        "training/tables.py",
        'np.argsort(-total, kind="stable"), list(index)',
        "np.argsort(total), list(index)",
    ),
    "the optimiser starts anew in partial_fit": (
        "Multimodal",
        "multimodal/model.py",
        "        self._best, self._best_score, self._stale = None, -math.inf, 0\n        self._texts",
        "        self._make_optimizer()\n        self._best, self._best_score, self._stale = None, -math.inf, 0\n"
        "        self._texts",
    ),
    "batches of each epoch are those of the first": (
        "Multimodal",
        "multimodal/trainer.py",
        "                    model._progress.before + epoch,\n                    seed=",
        "                    0,\n                    seed=",
    ),
    "batches of partial_fit are those of fit": (
        "Multimodal",
        "multimodal/trainer.py",
        "                    model._progress.before + epoch,\n                    seed=",
        "                    epoch,\n                    seed=",
    ),
    "dropout of partial_fit is that of fit": (
        "Multimodal",
        "multimodal/trainer.py",
        'f"{model.seed} {before + epoch} {number} {self.rank}"',
        'f"{model.seed} {epoch} {number} {self.rank}"',
    ),
    "p is the bias of other steps, in walks": (
        "Node2Vec",
        "graphs/walk_kernels.py",
        "bias = inverse_p if drawn[i] == previous[i] else bias",
        "bias = inverse_q if drawn[i] == previous[i] else bias",
    ),
    "a restart is never drawn": (
        "Node2Vec",
        "graphs/walk_kernels.py",
        "if _unit(_at(keys[i], number | _RESTART)) < restart:",
        "if _unit(_at(keys[i], number | _RESTART)) < 0:",
    ),
    "gamma pulls the wrong way": (
        "Node2Vec",
        "graphs/walk_tables.py",
        "found[row] = max(0.0, mean + gamma * np.sqrt",
        "found[row] = max(0.0, mean - gamma * np.sqrt",
    ),
    "the excess of a return is dropped": (
        "Node2Vec",
        "graphs/walk_kernels.py",
        "excess = max(0.0, tables.inverse_p - max(1.0, tables.inverse_q))",
        "excess = 0.0 * tables.inverse_p",
    ),
    "the last try takes any edge": (
        "Node2Vec",
        "graphs/walk_kernels.py",
        "            if again and target < total:\n                return place",
        "            if again:\n                return place",
    ),
    "a step of a metapath is of the next type": (
        "Node2Vec",
        "graphs/walk_kernels.py",
        "type_ = np.uint64(pattern[step % len(pattern)])",
        "type_ = np.uint64(pattern[(step + 1) % len(pattern)])",
    ),
}  # fmt: skip
TESTS_OF = {
    "training/": ("tests/test_training.py",),
    "graphs/walk": ("tests/test_walks.py",),
    "device": ("tests/test_device_glove.py", "tests/test_device.py"),
}

# Faults in C++: (file below csrc/, text, replacement). The folder's tests (COMPILED_TESTS) must detect them.
COMPILED = {
    "the labels of the path are upside down": (
        "sequences/outputs.h",
        "*weight++ = all, *label++ = 1.0f - codes[j];",
        "*weight++ = all, *label++ = codes[j];",
    ),
    "the labels of the path are upside down, in skip-gram of the path alone": (
        "sequences/windows.h",
        "label[j] = 1.0f - codes[begin + j];",
        "label[j] = codes[begin + j];",
    ),
    "a negative that is the center counts": (
        "sequences/outputs.h",
        "own += drawn[k] == center[t] ? share[t] : 0.0f;",
        "own += drawn[k] == center[t] ? 0.0f : 0.0f;",
    ),
    "a negative that is the center goes unseen in whole windows": (
        "sequences/windows.h",
        "for (int t = 0; t < n_centers; ++t) same |= drawn[k] == center[t];",
        "for (int t = 1; t < n_centers; ++t) same |= drawn[k] == center[t];",
    ),
    "the weight of a negative is dropped": (
        "sequences/outputs.h",
        "*weight++ = scale * (all - own), *label++ = 0.0f;",
        "*weight++ = (all - own), *label++ = 0.0f;",
    ),
    "the weight of a negative is dropped, in CBOW": (
        "sequences/sequences.cpp",
        "weight[0].assign(job.centers * job.drawn, job.scale);",
        "weight[0].assign(job.centers * job.drawn, 1.0f);",
    ),
    "a window is one word short on the right": (
        "sequences/outputs.h",
        "distance > radius ||",
        "distance >= radius ||",
    ),
    "a window is one word short on the left": (
        "sequences/windows.h",
        "return center - b.radius > b.first ? center - b.radius : b.first;",
        "return center - b.radius + 1 > b.first ? center - b.radius + 1 : b.first;",
    ),
    "a window reaches into the next document": (
        "sequences/windows.h",
        "return center + b.radius + 1 < b.last ? center + b.radius + 1 : b.last;",
        "return center + b.radius + 1 < b.last + 1 ? center + b.radius + 1 : b.last + 1;",
    ),
    "a step goes the wrong way": (
        "sequences/passes.h",
        "return (label - reciprocal(denominator)) * (weight * lr);",
        "return (reciprocal(denominator) - label) * (weight * lr);",
    ),
    "the loss of a positive has no score": (
        "sequences/passes.h",
        "(score - label * score));",
        "(score - 0.0f * label * score));",
    ),
    "the last rows of a batch are not scored": (
        "sequences/passes.h",
        "for (; i < m.n_in; ++i) dots<1, J>(m, i);",
        "for (; i + 1 < m.n_in; ++i) dots<1, J>(m, i);",
    ),
    "the last output of a tile is left out": (
        "sequences/passes.h",
        "const int begin = n_out * t / tiles, width = n_out * (t + 1) / tiles - begin;",
        "const int begin = n_out * t / tiles, width = n_out * (t + 1) / tiles - begin - (t > 0);",
    ),
    "columns of one row are not merged": (
        "sequences/passes.h",
        "while (twin < n_out && memory.out[twin] != m.out[j]) ++twin;",
        "twin = n_out;",
    ),
    "a row that stands twice is added once": (
        "sequences/windows.h",
        "memory.weight[row * n_out + j] += weight[i * n_out + j];",
        "memory.weight[row * n_out + j] = weight[i * n_out + j];",
    ),
    "a repetition one token away goes unseen": (
        "sequences/train_block.cpp",
        "for (int r = reach; r > 0; --r) {",
        "for (int r = reach; r > 1; --r) {",
    ),
    "the rate starts again in every epoch": (
        "sequences/train_block.cpp",
        "static_cast<double>(job.tokens_before + begin) /",
        "static_cast<double>(begin) /",
    ),
    "a window is never full": (
        "sequences/train_block.cpp",
        "1 + static_cast<int>(below(width(begin + center), job.window)) : job.window",
        "1 + static_cast<int>(below(width(begin + center), job.window)) : (job.window + 1) / 2",
    ),
    "widths are those of the first block": (
        "sequences/train_block.cpp",
        "below(width(begin + center), job.window)",
        "below(width(center), job.window)",
    ),
    "draws are read past the end of the pool": (
        "sequences/train_block.cpp",
        "if (next_draw + draws > job.n_noise) next_draw = 0;",
        "if (next_draw + draws > job.n_noise) next_draw = job.n_noise - draws;",
    ),
    "the top of the tree is not merged at the end": (
        "sequences/train_block.cpp",
        "  copies.merge(memory.n_copies);\n",
        "",
    ),
    "hidden rows and deltas have each other's scale": (
        "sequences/windows.h",
        "job.mean ? share : 1.0f,\n                   job.mean ? 1.0f : share}",
        "job.mean ? 1.0f : share,\n                   job.mean ? share : 1.0f}",
    ),
    "the missing word is the last word": (
        "sequences/windows.h",
        "p < b.first || p >= b.last ? job.w_in.n - 1",
        "p < b.first || p >= b.last ? job.w_in.n - 2",
    ),
    "frozen words move": (
        "sequences/windows.h",
        "    if (job.frozen) return;\n    for (int p = left",
        "    for (int p = left",
    ),
    "an inferred row is the sum of its epochs": (
        "sequences/sequences.cpp",
        "row[i] = sum[i] / static_cast<float>(averaged);",
        "row[i] = sum[i];",
    ),
    "ties of the tree go to the leaf": (
        "sequences/huffman.cpp",
        "count[leaf] < count[node])) return leaf--;",
        "count[leaf] <= count[node])) return leaf--;",
    ),
    "the codes of the tree are upside down": (
        "sequences/huffman.cpp",
        "code[second] = 1;",
        "code[first] = 1;",
    ),
    "a step is clipped from above alone": (
        "glove/train_group.cpp",
        "smaller(splat(limit), larger(splat(-limit), x))",
        "smaller(splat(limit), x)",
    ),
    "the bias moves by lr": (
        "glove/train_group.cpp",
        "rate = reinterpret_cast<V>((is_bias & reinterpret_cast<Ints>(splat(1.0f))) |",
        "rate = reinterpret_cast<V>((is_bias & reinterpret_cast<Ints>(splat(job.lr))) |",
    ),
    "the weight has no power": (
        "glove/train_group.cpp",
        "(log_x_max - log) * job.alpha)",
        "(log_x_max - log) * 1.0f)",
    ),
    "values above x_max weigh more": (
        "glove/train_group.cpp",
        "exp_minus(larger(zero(), (log_x_max - log) * job.alpha))",
        "exp_minus((log_x_max - log) * job.alpha)",
    ),
    "a group is one entry short": (
        "glove/train_group.cpp",
        "  for (int64_t i = 0; i < n; ++i) {\n    if (i + ahead < n)",
        "  for (int64_t i = 0; i + 1 < n; ++i) {\n    if (i + ahead < n)",
    ),
    "the shuffle begins anew in each epoch": (
        "glove/train_group.cpp",
        "const Stream draw(job.seed, job.epoch, Purpose::shuffle);",
        "const Stream draw(job.seed, 0, Purpose::shuffle);",
    ),
    "rows of the same score come last first": (
        "ternary/ternary.cpp",
        "(a.key == b.key && a.row < b.row)",
        "(a.key == b.key && a.row > b.row)",
    ),
    "a score has no sign": (
        "ternary/ternary.cpp",
        "dot * std::fabs(dot) / nonzeros",
        "dot * dot / nonzeros",
    ),
    "a query finds itself": (
        "ternary/ternary.cpp",
        "|| r + i == own ||",
        "||",
    ),
    "the last queries of a search are left out": (
        "ternary/ternary_rows.cpp",
        "  for (; q < m; ++q) {\n    for (int64_t r = 0; r < n; ++r) {",
        "  for (; q + 1 < m; ++q) {\n    for (int64_t r = 0; r < n; ++r) {",
    ),
    "the last row of a tile is left out": (
        "ternary/ternary_rows.cpp",
        "for (; r < n; ++r) dot_tile<Q, 1>(queries, planes + 2 * words * r, words, dots + r, n);",
        "for (; r + 1 < n; ++r) dot_tile<Q, 1>(queries, planes + 2 * words * r, words, dots + r, n);",
    ),
    "opposite levels count as equal ones": (
        "ternary/ternary_rows.cpp",
        "words_of(both[i]) - 2 * words_of(opposite[i])",
        "words_of(both[i]) - 1 * words_of(opposite[i])",
    ),
    "bytes of counted bits run over": (
        "ternary/ternary_rows.cpp",
        "constexpr int64_t most_ones = 31;",
        "constexpr int64_t most_ones = 63;",
    ),
}  # fmt: skip
OTHERS = ("-k", "not avx")  # the baseline build has no AVX kernels
COMPILED_TESTS = {
    "sequences": (
        ("tests/test_kernels.py", *OTHERS),
        ("tests/test_contract.py", "-k", "Word2Vec or Doc2Vec"),
        ("tests/test_doc2vec.py", "tests/test_word2vec.py"),
    ),
    "glove": (("tests/test_glove.py", *OTHERS),),
    "ternary": (("tests/test_ternary.py", *OTHERS),),
}

# Files below embfast/ that read the settings of a model as model.SETTING.
TRAINERS = {
    **dict.fromkeys(("Word2Vec", "Doc2Vec", "Node2Vec", "LINE"), ("training/sequences.py",)),
    "Multimodal": ("multimodal/trainer.py",),
}

# Faults that no test can detect, with the reason.
NOT_SEEN = {
    "Node2Vec: window is 10": "windows read it by name (windows forget ...); sharing treats all windows up to 15 alike",
    "GloVe: lr is 0.05": "the record reads it by name (lr is 0.05 in the record); elsewhere it is only displayed",
    "GloVe: x_max and alpha swapped": "the record reads them by name (x_max and alpha swapped in the record)",
}
