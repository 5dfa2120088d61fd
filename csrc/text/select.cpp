// The vocabulary: tables of all threads merged, words selected and ordered.
#include <algorithm>
#include <stdexcept>

#include "core/threads.h"
#include "text/text.h"
#include "text/worker.h"

namespace embfast {

// Merges the workers' tables into one whose ids follow the first occurrence in the text: segments are in text order,
// and within a segment the ids of its worker's new words rise.
void TextEncoder::merge() {
  if (is_frozen_) {
    global_count_.assign(static_cast<size_t>(frozen_.n_words), 0);
    for (const Worker* worker : workers_) {
      for (size_t i = 0; i < global_count_.size(); ++i) global_count_[i] += worker->frozen_counts[i + 2];
    }
    slot_of_.assign(global_count_.size(), nullptr);
    for (const WordTable::Slot& slot : frozen_) {
      if (slot.length && slot.id >= 0) slot_of_[static_cast<size_t>(slot.id)] = &slot;
    }
    return;
  }
  if (workers_.size() == 1) {
    const auto slots = workers_[0]->words_by_id();
    slot_of_.assign(slots.begin(), slots.end());
    for (const WordTable::Slot* slot : slots) global_count_.push_back(static_cast<int64_t>(slot->count));
    return;
  }
  std::vector<std::vector<WordTable::Slot*>> words(workers_.size());
  in_threads(static_cast<int>(workers_.size()), [&](int i) {
    const auto w = static_cast<size_t>(i);
    words[w] = workers_[w]->words_by_id();
  });
  global_id_.resize(workers_.size());
  for (size_t w = 0; w < workers_.size(); ++w) global_id_[w].resize(words[w].size());
  merged_.reserve(
      std::max_element(workers_.begin(), workers_.end(),
                       [](const Worker* a, const Worker* b) { return a->table.n_words < b->table.n_words; })[0]
          ->table.n_words);
  constexpr size_t kAhead = 16;  // words whose slots in both tables are prefetched
  std::vector<WordTable::Key> keys;
  for (const Segment& segment : segments_) {
    const auto w = static_cast<size_t>(segment.worker);
    const WordTable& table = workers_[w]->table;
    const auto first = static_cast<size_t>(segment.first_word), n = static_cast<size_t>(segment.end_word) - first;
    keys.resize(n);
    for (size_t k = 0; k < n + kAhead; ++k) {
      if (k + kAhead < n) __builtin_prefetch(words[w][first + k + kAhead]);
      if (k < n) {
        keys[k] = table.key(*words[w][first + k]);
        merged_.prefetch(keys[k].hash);
      }
      if (k < kAhead) continue;
      const WordTable::Key& key = keys[k - kAhead];
      WordTable::Slot* slot = merged_.find(key);
      if (!slot) {
        slot = merged_.insert(key, merged_.n_words++);
        global_count_.push_back(0);
      }
      const size_t id = first + k - kAhead;
      global_id_[w][id] = slot->id;
      global_count_[static_cast<size_t>(slot->id)] += static_cast<int64_t>(words[w][id]->count);
    }
  }
  slot_of_.resize(global_count_.size());
  for (const WordTable::Slot& slot : merged_) {
    if (slot.length) slot_of_[static_cast<size_t>(slot.id)] = &slot;
  }
}

const TextEncoder::Vocabulary& TextEncoder::select(int64_t min_count, int64_t max_vocab,
                                                   const std::vector<std::string_view>& keep, bool fixed) {
  if (state_ == State::written) throw std::logic_error("TextEncoder: select comes before write");
  if (state_ == State::reading) merge();
  state_ = State::selected;
  vocabulary_ = {};
  const auto count_of = [&](int32_t id) { return global_count_[static_cast<size_t>(id)]; };
  std::vector<int32_t>& order = vocabulary_.order;
  std::vector<char> is_kept(keep.empty() ? 0 : global_count_.size(), 0);
  const WordTable& table = is_frozen_ ? frozen_ : workers_.size() == 1 ? workers_[0]->table : merged_;
  std::string padded;
  for (const std::string_view word : keep) {
    if (word.empty()) continue;
    const WordTable::Slot* slot = table.find(padded_key(word, padded));
    if (slot && slot->id >= 0) is_kept[static_cast<size_t>(slot->id)] = 1;
  }
  const auto kept = [&](int32_t id) { return !is_kept.empty() && is_kept[static_cast<size_t>(id)]; };
  for (int32_t id = 0; id < static_cast<int32_t>(global_count_.size()); ++id) {
    vocabulary_.n_distinct += count_of(id) > 0;
    vocabulary_.largest_count = std::max(vocabulary_.largest_count, count_of(id));
    if (fixed || count_of(id) >= min_count || (kept(id) && count_of(id) > 0)) order.push_back(id);
  }
  if (!fixed) {
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return count_of(a) != count_of(b) ? count_of(a) > count_of(b) : a < b; });
    if (max_vocab > 0 && static_cast<int64_t>(order.size()) > max_vocab) {
      int64_t room = max_vocab - std::count_if(order.begin(), order.end(), kept);
      std::erase_if(order, [&](int32_t id) { return !kept(id) && room-- <= 0; });
    }
  }
  rank_of_.assign(global_count_.size(), -1);
  for (size_t rank = 0; rank < order.size(); ++rank) {
    rank_of_[static_cast<size_t>(order[rank])] = static_cast<int32_t>(rank);
    vocabulary_.counts.push_back(count_of(order[rank]));
    vocabulary_.n_tokens += vocabulary_.counts.back();
  }
  return vocabulary_;
}

std::string_view TextEncoder::word(int64_t rank) const {
  const WordTable::Slot* slot = slot_of_[static_cast<size_t>(vocabulary_.order[static_cast<size_t>(rank)])];
  if (!slot) return {};
  const WordTable& table = is_frozen_ ? frozen_ : workers_.size() == 1 ? workers_[0]->table : merged_;
  return table.word(*slot);
}

}  // namespace embfast
