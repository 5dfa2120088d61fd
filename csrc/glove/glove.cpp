// GloVe on the CPU: distributes groups over threads, and sorts entries into groups.
#include "glove/glove.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <memory>
#include <utility>
#include <vector>

#include "core/isa.h"
#include "core/random.h"
#include "core/threads.h"

namespace embfast {

namespace {

constexpr int64_t pad = 16;  // floats beyond the end that a full register touches

struct Thread {
  std::unique_ptr<Entry[]> entry;
  std::unique_ptr<float[]> log, weight;
  GloveTally tally;

  explicit Thread(int64_t longest)
      : entry(std::make_unique<Entry[]>(longest)),
        log(std::make_unique<float[]>(longest + pad)),
        weight(std::make_unique<float[]>(longest + pad)) {}
};

int64_t group_of(const Grouping& g, const Stream& draw, int64_t i) {
  if (!g.tile) return below(draw(i), static_cast<uint32_t>(g.n_groups));
  const int64_t across = (g.n_rows + g.tile - 1) / g.tile;
  return g.place[g.entries[i].row] / g.tile * across + g.place[g.entries[i].column] / g.tile;
}

}  // namespace

GloveTally train_entries(const GloveJob& job, int threads) {
  const TrainGroup train = EMBFAST_CHOOSE(train_group);
  std::atomic<int64_t> next{job.first};
  std::vector<std::unique_ptr<Thread>> workers;
  for (int t = 0; t < threads; ++t) workers.push_back(std::make_unique<Thread>(job.longest));
  in_threads(threads, [&](int t) {
    Thread& mine = *workers[t];
    const GloveScratch scratch{mine.entry.get(), mine.log.get(), mine.weight.get()};
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < job.last;) {
      train(job, job.order[i], scratch, mine.tally);
    }
  });
  GloveTally total;
  for (const auto& worker : workers) {
    total.loss += worker->tally.loss;
    total.entries += worker->tally.entries;
  }
  return total;
}

int64_t group_entries(const Grouping& g, int64_t* groups, Entry* grouped) {
  const Stream draw(g.seed, 0, Purpose::group);
  const auto n_words = static_cast<uint64_t>(g.n_words);
  std::fill(groups, groups + g.n_groups + 1, 0);
  for (int64_t i = 0; i < g.n_entries; ++i) {
    const Entry& e = g.entries[i];
    const bool known = static_cast<uint32_t>(e.row) < n_words && static_cast<uint32_t>(e.column) < n_words;
    if (!known || !(e.value >= FLT_MIN && e.value <= FLT_MAX)) return i;
    ++groups[group_of(g, draw, i)];
  }
  int64_t sum = 0;
  for (int64_t k = 0; k <= g.n_groups; ++k) groups[k] = std::exchange(sum, sum + groups[k]);
  for (int64_t i = 0; i < g.n_entries; ++i) {
    const Entry& e = g.entries[i];
    grouped[groups[group_of(g, draw, i)]++] = {g.place[e.row], g.place[e.column], e.value};
  }
  std::copy_backward(groups, groups + g.n_groups, groups + g.n_groups + 1);  // each edge is now at the end of its group
  groups[0] = 0;
  if (g.tile) {
    for (int64_t k = 0; k < g.n_groups; ++k) {
      for (int64_t i = groups[k]; i < groups[k + 1]; ++i) {
        std::swap(grouped[i], grouped[groups[k] + below(draw(i), static_cast<uint32_t>(i - groups[k] + 1))]);
      }
    }
  }
  return -1;
}

void random_order(int32_t* order, uint32_t n, uint64_t seed, uint64_t epoch) {
  const Stream draw(seed, epoch, Purpose::order);
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t j = below(draw(i), i + 1);
    order[i] = order[j];
    order[j] = static_cast<int32_t>(i);
  }
}

}  // namespace embfast
