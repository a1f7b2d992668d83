// SPDX-License-Identifier: Apache-2.0

// Package watch holds state whose readers follow its changes.
//
// A [Map] is a map with a revision: every Put and Delete gets the next number.
// A [Reader] is told everything once and then what changed, in the order of
// the revisions:
//
//	r := m.Reader()
//	defer r.Close()
//	for {
//		changes, err := r.Next(ctx) // first call: everything; later: waits for changes
//		…
//	}
//
// There is no queue per reader. Each key has at most one node, alive or a
// tombstone, in one list ordered by revision; a change moves the node to the
// tail, and a reader walks back from the tail to the revision it has seen. So
// a writer never waits for a reader, a slow reader gets each key once with its
// latest value however often it changed meanwhile, and an idle reader costs a
// few words. A tombstone is kept until every reader has passed it.
//
// Values may be about topics, and a reader may be for one: it is told no others, and
// what is about others does not even wake it. Nor does a [Map.Touch] wake a reader that is
// for changes only.
//
// Values are handed out as they were put: treat them as immutable.
package watch

import (
	"cmp"
	"container/list"
	"context"
	"iter"
	"slices"
	"sync"

	"github.com/openvwire/nsm/sdk/nserr"
)

// minTombstones is how many tombstones are kept for slow readers however small
// the map is: more than a burst of deletions that a busy reader sleeps through.
// A larger map keeps as many as it has live keys, so that a reader that never
// reads again costs at most as much memory as the state itself.
const minTombstones = 1 << 16

// Map is revision-ordered state. Its methods may be called concurrently.
type Map[K comparable, V any] struct {
	mu      sync.Mutex
	rev     uint64            // of the last change; the first change has 1
	nodes   map[K]*node[K, V] // every node of log
	log     *list.List        // of *node, by revision, alive and dead
	dead    *list.List        // of *node, by revision, tombstones only
	readers *list.List        // of *Reader that may have something to read, by Reader.rev
	floor   uint64            // revision of the newest tombstone dropped

	topics  func(V) []string                    // of a value; nil: it has none. Fixed.
	about   map[string]map[*node[K, V]]struct{} // the living ones of each topic
	waiting map[interest]*queue[K, V]           // readers that have read all there is for them
}

// interest is what a reader is told of.
type interest struct {
	all     bool
	topic   string // unless all
	changes bool   // of no Touch
}

// queue is who waits for a change. They have no place among the readers: there is
// nothing that they have not read, whatever the revision.
type queue[K comparable, V any] struct {
	readers map[*Reader[K, V]]struct{}
	changed chan struct{} // closed by the next change
}

// node is the latest change of one key.
type node[K comparable, V any] struct {
	Change[K, V]
	changed uint64        // revision of the last change that was no Touch
	topics  []string      // of Value
	inLog   *list.Element // of Map.log
	inDead  *list.Element // of Map.dead; nil while alive
}

// Change says what a key is now: its value, or that it is gone.
type Change[K comparable, V any] struct {
	Key      K
	Value    V // of a deleted key: the last one stored
	Deleted  bool
	Revision uint64
}

// New returns an empty map.
func New[K comparable, V any]() *Map[K, V] { return NewWithTopics[K, V](nil) }

// NewWithTopics returns an empty map that has readers of topics. topics says what a
// value is about; it is called with the map locked, once for each Put, and its result must
// not change. What a new reader costs depends on how much its topic has, not on how much
// there is.
func NewWithTopics[K comparable, V any](topics func(V) []string) *Map[K, V] {
	return &Map[K, V]{
		nodes:   make(map[K]*node[K, V]),
		log:     list.New(),
		dead:    list.New(),
		readers: list.New(),
		topics:  topics,
		about:   make(map[string]map[*node[K, V]]struct{}),
		waiting: make(map[interest]*queue[K, V]),
	}
}

// Put stores v under k and returns the revision of this change. Storing an
// equal value is a change too.
func (m *Map[K, V]) Put(k K, v V) uint64 { return m.put(k, v, false) }

// Touch is Put of a value that brings nothing new: readers that are for changes only are
// told it with the next change of k. Of a new k, and where the topics are others now, it is
// a change.
func (m *Map[K, V]) Touch(k K, v V) uint64 { return m.put(k, v, true) }

func (m *Map[K, V]) put(k K, v V, touch bool) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	n := m.nodes[k]
	if n == nil {
		touch = false
		n = &node[K, V]{}
		n.inLog = m.log.PushBack(n)
		m.nodes[k] = n
	} else {
		m.log.MoveToBack(n.inLog)
	}
	if n.inDead != nil {
		touch = false
		m.dead.Remove(n.inDead)
		n.inDead, n.topics = nil, nil // Delete has unlisted it
	}
	n.Change = Change[K, V]{Key: k, Value: v, Revision: m.rev}
	if m.topics != nil && m.moveLocked(n, m.topics(v)) {
		touch = false
	}
	if !touch {
		n.changed = m.rev
	}
	m.wakeLocked(n)
	return m.rev
}

// Delete removes k and returns the revision of this change, or 0 if there was
// no such key.
func (m *Map[K, V]) Delete(k K) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[k]
	if n == nil || n.Deleted {
		return 0
	}
	m.rev++
	n.Deleted, n.Revision, n.changed = true, m.rev, m.rev
	m.log.MoveToBack(n.inLog)
	n.inDead = m.dead.PushBack(n)
	m.unlistLocked(n)
	m.wakeLocked(n) // before pruning: a tombstone is kept for readers that have a place
	m.pruneLocked()
	return m.rev
}

// Get returns the value of k.
func (m *Map[K, V]) Get(k K) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[k]; n != nil && !n.Deleted {
		return n.Value, true
	}
	return v, false
}

// Len returns the number of keys.
func (m *Map[K, V]) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lenLocked()
}

func (m *Map[K, V]) lenLocked() int { return m.log.Len() - m.dead.Len() }

// All returns the keys and values of one moment, the longest unchanged first.
// The map may be used and changed during the iteration.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		m.mu.Lock()
		all := m.aliveLocked(interest{all: true})
		m.mu.Unlock()
		for _, c := range all {
			if !yield(c.Key, c.Value) {
				return
			}
		}
	}
}

// aliveLocked returns all that in is told of, by revision.
func (m *Map[K, V]) aliveLocked(in interest) (all []Change[K, V]) {
	if !in.all {
		for n := range m.about[in.topic] {
			all = append(all, n.Change)
		}
		slices.SortFunc(all, func(a, b Change[K, V]) int { return cmp.Compare(a.Revision, b.Revision) })
		return all
	}
	all = make([]Change[K, V], 0, m.lenLocked())
	for e := m.log.Front(); e != nil; e = e.Next() {
		if n := e.Value.(*node[K, V]); !n.Deleted {
			all = append(all, n.Change)
		}
	}
	return all
}

// moveLocked lists n, whose value is new, under its topics, and reports whether those
// are others.
func (m *Map[K, V]) moveLocked(n *node[K, V], topics []string) (others bool) {
	if slices.Equal(n.topics, topics) {
		return false // as most often: there is nothing new but the time
	}
	m.unlistLocked(n)
	n.topics = topics
	for _, topic := range topics {
		of := m.about[topic]
		if of == nil {
			of = make(map[*node[K, V]]struct{})
			m.about[topic] = of
		}
		of[n] = struct{}{}
	}
	return true
}

func (m *Map[K, V]) unlistLocked(n *node[K, V]) {
	for _, topic := range n.topics {
		delete(m.about[topic], n)
		if len(m.about[topic]) == 0 {
			delete(m.about, topic)
		}
	}
}

// sinceLocked returns what a reader that has seen rev does not know yet.
func (m *Map[K, V]) sinceLocked(rev uint64, in interest) []Change[K, V] {
	var changes []Change[K, V]
	for e := m.log.Back(); e != nil; e = e.Prev() {
		n := e.Value.(*node[K, V])
		if n.Revision <= rev {
			break
		}
		if (!in.changes || n.changed > rev) && (in.all || slices.Contains(n.topics, in.topic)) {
			changes = append(changes, n.Change)
		}
	}
	slices.Reverse(changes)
	return changes
}

// pruneLocked drops the tombstones that every reader has passed, and the
// oldest of too many.
func (m *Map[K, V]) pruneLocked() {
	passed := m.rev
	if first := m.readers.Front(); first != nil {
		passed = first.Value.(*Reader[K, V]).rev
	}
	limit := max(minTombstones, m.lenLocked())
	for e := m.dead.Front(); e != nil; e = m.dead.Front() {
		n := e.Value.(*node[K, V])
		if n.Revision > passed && m.dead.Len() <= limit {
			break
		}
		m.floor = n.Revision
		m.dead.Remove(e)
		m.log.Remove(n.inLog)
		delete(m.nodes, n.Key)
	}
}

// wakeLocked wakes the readers that wait for a change like the latest one, that of n. It is
// the first that they have to read.
func (m *Map[K, V]) wakeLocked(n *node[K, V]) {
	m.wakeQueueLocked(interest{all: true})
	for _, topic := range n.topics {
		m.wakeQueueLocked(interest{topic: topic})
	}
	if n.changed < n.Revision {
		return
	}
	m.wakeQueueLocked(interest{all: true, changes: true})
	for _, topic := range n.topics {
		m.wakeQueueLocked(interest{topic: topic, changes: true})
	}
}

func (m *Map[K, V]) wakeQueueLocked(in interest) {
	q := m.waiting[in]
	if q == nil {
		return
	}
	delete(m.waiting, in)
	for r := range q.readers {
		r.queue = nil
		r.placeLocked(m.rev - 1)
	}
	close(q.changed)
}

// Reader returns a reader whose first Next gives everything.
func (m *Map[K, V]) Reader() *Reader[K, V] {
	return &Reader[K, V]{m: m, in: interest{all: true}}
}

// ReaderOf is Reader for what is about one topic. That a value has turned to other
// topics it is not told.
func (m *Map[K, V]) ReaderOf(topic string) *Reader[K, V] {
	return &Reader[K, V]{m: m, in: interest{topic: topic}}
}

// ChangesOnly makes r, which has not read yet, a reader that is told of no Touch, and returns it.
func (r *Reader[K, V]) ChangesOnly() *Reader[K, V] {
	r.in.changes = true
	return r
}

// Follow returns a reader that is told only what changes from now on: for one
// that takes its first picture by other means (an index, say) under a lock of
// its own that also covers Put and Delete.
func (m *Map[K, V]) Follow() *Reader[K, V] {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.Reader()
	r.begun = true
	r.placeLocked(m.rev)
	return r
}

// Reader follows a Map. Use it from one goroutine and close it in the end:
// tombstones are kept for it.
type Reader[K comparable, V any] struct {
	m  *Map[K, V]
	in interest

	// Guarded by m.mu.
	begun  bool          // it has been told everything once
	rev    uint64        // everything up to here has been told; means nothing while it waits
	place  *list.Element // of m.readers; nil before the first Next, while it waits, and after Close
	queue  *queue[K, V]  // nil unless it waits
	closed bool
}

// placeLocked gives r, which has been told everything up to rev, a place among the
// readers. Nobody has read more.
func (r *Reader[K, V]) placeLocked(rev uint64) {
	r.rev = rev
	r.place = r.m.readers.PushBack(r)
}

// leaveLocked takes r out of its place, or the queue.
func (r *Reader[K, V]) leaveLocked() {
	if r.place != nil {
		r.m.readers.Remove(r.place)
		r.place = nil
	}
	if r.queue != nil {
		delete(r.queue.readers, r)
		if len(r.queue.readers) == 0 {
			delete(r.m.waiting, r.in)
		}
		r.queue = nil
	}
}

// waitLocked has r, which has been told everything, wait for a change.
func (r *Reader[K, V]) waitLocked() <-chan struct{} {
	r.leaveLocked()
	q := r.m.waiting[r.in]
	if q == nil {
		q = &queue[K, V]{readers: make(map[*Reader[K, V]]struct{}), changed: make(chan struct{})}
		r.m.waiting[r.in] = q
	}
	q.readers[r] = struct{}{}
	r.queue = q
	return q.changed
}

// Next returns what r does not know yet, each key once, by ascending revision.
// A key that came and went meanwhile is told as deleted, too.
// The first call returns everything at once, possibly nothing; later calls
// wait for a change. It fails with the cause of ctx, with nserr.WatchLost when
// r has slept through more deletions than the map remembers (take a new reader
// then), and with nserr.Stopping after Close.
func (r *Reader[K, V]) Next(ctx context.Context) ([]Change[K, V], error) {
	for {
		changes, wait, err := r.poll()
		if wait == nil {
			return changes, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// poll returns the changes or, when there are none, the channel to wait on.
func (r *Reader[K, V]) poll() ([]Change[K, V], <-chan struct{}, error) {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.closed:
		return nil, nil, nserr.Stopping.Errorf("reader is closed")
	case !r.begun:
		r.begun = true
		r.placeLocked(m.rev)
		return m.aliveLocked(r.in), nil, nil
	case r.queue != nil: // somebody gave up waiting, and nothing has come since
		return nil, r.queue.changed, nil
	case r.rev < m.floor:
		return nil, nil, nserr.WatchLost.Errorf("reader is at revision %d, deletions are known from %d on", r.rev, m.floor)
	}
	changes := m.sinceLocked(r.rev, r.in)
	if len(changes) == 0 {
		wait := r.waitLocked()
		m.pruneLocked()
		return nil, wait, nil
	}
	r.rev = m.rev
	m.readers.MoveToBack(r.place)
	m.pruneLocked()
	return changes, nil, nil
}

// Close lets go of the map. It may be called more than once.
func (r *Reader[K, V]) Close() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.closed = true
	r.leaveLocked()
	r.m.pruneLocked()
}
