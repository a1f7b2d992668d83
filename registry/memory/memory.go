// SPDX-License-Identifier: Apache-2.0

// Package memory is the registry's store for one machine: everything is in
// memory, indexed by name and by network service, and a file beside it brings
// it back after a restart.
//
//	services, err := memory.Open[*api.NetworkService](memory.Config{Path: dir + "/services.log", Sync: true})
//	endpoints, err := memory.Open[*api.NetworkServiceEndpoint](memory.Config{Path: dir + "/endpoints.log"})
//
// Without a path nothing is written. With one, every change is appended to the
// file before it takes effect (package journal), so that a crash of this process
// loses nothing. Sync decides about a crash of the machine: with it each
// change waits for the disk, which suits network services, as people write
// them by hand; endpoints come back on their own within a minute, and there
// are thousands of renewals to write, so they go without.
//
// An object that has expired is not loaded, and its removal is not written.
package memory

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/internal/journal"
	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/watch"
)

// Config says where a store keeps its file.
type Config struct {
	Path   string       // of the file; "" keeps nothing
	Sync   bool         // wait for the disk with every change
	Logger *slog.Logger // nil = slog.Default()
}

// Store implements registry.Store.
type Store[T registry.Object] struct {
	log  *slog.Logger
	path string // of the file; "" = none

	// turn holds a token while somebody writes; whoever waits can give up.
	// The fields below it belong to whoever has the turn.
	turn    chan struct{}
	journal *journal.Journal // nil without a file
	closed  bool

	// mu makes byService and objects change together. It is held for as long
	// as a map access takes, never during I/O. Lock order: turn, mu, the
	// inner lock of objects.
	mu        sync.RWMutex
	objects   *watch.Map[string, registry.Stored[T]]
	byService map[string]map[string]registry.Stored[T] // by network service, then by name
}

// New returns an empty store without a file.
func New[T registry.Object]() *Store[T] {
	return &Store[T]{
		log:       slog.Default(),
		turn:      make(chan struct{}, 1),
		objects:   watch.New[string, registry.Stored[T]](),
		byService: make(map[string]map[string]registry.Stored[T]),
	}
}

// Open returns a store with what its file holds and has not expired. It fails
// with nserr.StateDir if the file cannot be used, is in use by another process,
// or is damaged elsewhere than at its end; what was torn off at the end is cut
// off and reported in the log. A file of another version is set aside, and the store
// begins empty.
func Open[T registry.Object](c Config) (*Store[T], error) {
	s := New[T]()
	if c.Logger != nil {
		s.log = c.Logger
	}
	if c.Path == "" {
		return s, nil
	}
	latest := make(map[string]T)
	j, err := journal.Open(journal.Config{
		Path: c.Path, Kind: "NSMREG", Version: 1, Noun: "registry file", Sync: c.Sync, Lost: lost[T](), Logger: s.log,
	}, func(op journal.Operation, payload []byte) error {
		if op == journal.Delete {
			delete(latest, string(payload))
			return nil
		}
		v, err := decode[T](payload)
		if err == nil {
			latest[v.GetName()] = v
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.journal, s.path = j, c.Path
	now := time.Now()
	var none T
	for name, v := range latest {
		if registry.Expired(v, now) {
			continue
		}
		stored, err := registry.NewStored(v)
		if err != nil {
			return nil, errors.Join(err, j.Close())
		}
		s.apply(name, none, stored)
	}
	s.compact()
	s.log.Info("registry store loaded", "file", c.Path, "count", s.objects.Len(), "expired", len(latest)-s.objects.Len())
	return s, nil
}

// Find implements registry.Store.
func (s *Store[T]) Find(ctx context.Context, template T) iter.Seq2[registry.Stored[T], error] {
	return func(yield func(registry.Stored[T], error) bool) {
		if ctx.Err() != nil {
			yield(registry.Stored[T]{}, context.Cause(ctx))
			return
		}
		s.mu.RLock()
		candidates := s.candidatesLocked(template)
		s.mu.RUnlock()
		for _, v := range candidates {
			if query.Match(template, v.Object) && !yield(v, nil) {
				return
			}
		}
	}
}

// candidatesLocked returns the objects among which all matches are: the one of
// that name, else those of the rarest service, else all. Caller holds mu.
func (s *Store[T]) candidatesLocked(template T) []registry.Stored[T] {
	if name := template.GetName(); name != "" {
		if v, ok := s.objects.Get(name); ok {
			return []registry.Stored[T]{v}
		}
		return nil
	}
	services := registry.Services(template)
	if len(services) == 0 {
		all := make([]registry.Stored[T], 0, s.objects.Len())
		for _, v := range s.objects.All() {
			all = append(all, v)
		}
		return all
	}
	rarest := s.byService[services[0]]
	for _, service := range services[1:] {
		if named := s.byService[service]; len(named) < len(rarest) {
			rarest = named
		}
	}
	some := make([]registry.Stored[T], 0, len(rarest))
	for _, v := range rarest {
		some = append(some, v)
	}
	return some
}

// Update implements registry.Store.
func (s *Store[T]) Update(ctx context.Context, name string, f func(T) (T, error)) (T, error) {
	var none T
	if err := s.takeTurn(ctx); err != nil {
		return none, err
	}
	defer s.passTurn()
	old, _ := s.objects.Get(name)
	v, err := f(old.Object)
	switch {
	case err != nil:
		return none, err
	case v == none && old.Object == none:
		return none, nil
	case v != none && v.GetName() != name:
		return none, nserr.Internal.Errorf("update of %q gave an object called %q", name, v.GetName())
	}
	var next registry.Stored[T]
	if v != none {
		if next, err = registry.NewStored(v); err != nil {
			return none, err
		}
	}
	if err := s.write(name, old.Object, next); err != nil {
		return none, err
	}
	s.apply(name, old.Object, next)
	s.compact()
	return v, nil
}

func (s *Store[T]) takeTurn(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.closed {
		s.passTurn()
		return nserr.Stopping.Errorf("registry store is closed")
	}
	return nil
}

func (s *Store[T]) passTurn() { <-s.turn }

// write appends the change to the file. Caller has the turn.
func (s *Store[T]) write(name string, old T, next registry.Stored[T]) error {
	var none T
	switch {
	case s.journal == nil:
		return nil
	case next.Object != none:
		return s.journal.Append(journal.Put, next.Encoded)
	case registry.Expired(old, time.Now()):
		return nil
	}
	return s.journal.Append(journal.Delete, []byte(name))
}

// apply makes the change visible. Caller has the turn, or is alone.
func (s *Store[T]) apply(name string, old T, next registry.Stored[T]) {
	var none T
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, service := range registry.Services(old) {
		delete(s.byService[service], name)
		if len(s.byService[service]) == 0 {
			delete(s.byService, service)
		}
	}
	for _, service := range registry.Services(next.Object) {
		if s.byService[service] == nil {
			s.byService[service] = make(map[string]registry.Stored[T])
		}
		s.byService[service][name] = next
	}
	if next.Object == none {
		s.objects.Delete(name)
	} else {
		s.objects.Put(name, next)
	}
}

// compact rewrites the file when most of it is history. Failure is no error
// for the caller, whose change is written: the old file stays in use.
func (s *Store[T]) compact() {
	if s.journal == nil || !s.journal.Due() {
		return
	}
	err := s.journal.Rewrite(func(yield func([]byte, error) bool) {
		for _, v := range s.objects.All() {
			if !yield(v.Encoded, nil) {
				return
			}
		}
	})
	if err != nil {
		s.log.Warn("registry file stays uncompacted", "file", s.path, "bytes", s.journal.Size(), "error", err)
	}
}

// Watch implements registry.Store.
func (s *Store[T]) Watch(ctx context.Context, template T) (registry.Watcher[T], error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &watcher[T]{
		template: template,
		snapshot: s.candidatesLocked(template),
		changes:  s.objects.Follow(),
	}, nil
}

// watcher gives the snapshot that the index found, then what follows it.
type watcher[T registry.Object] struct {
	template T
	snapshot []registry.Stored[T]
	told     bool // snapshot has been given
	changes  *watch.Reader[string, registry.Stored[T]]
}

// Next implements registry.Watcher.
func (w *watcher[T]) Next(ctx context.Context) ([]registry.Event[T], error) {
	if !w.told {
		events := make([]registry.Event[T], 0, len(w.snapshot))
		for _, v := range w.snapshot {
			if query.Match(w.template, v.Object) {
				events = append(events, registry.Event[T]{Stored: v})
			}
		}
		w.snapshot, w.told = nil, true
		return events, nil
	}
	for {
		changes, err := w.changes.Next(ctx)
		if err != nil {
			return nil, err
		}
		var events []registry.Event[T]
		for _, c := range changes {
			if query.Match(w.template, c.Value.Object) {
				events = append(events, registry.Event[T]{Stored: c.Value, Deleted: c.Deleted})
			}
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}

// Close implements registry.Watcher.
func (w *watcher[T]) Close() { w.changes.Close() }

// Close waits for the change that is being written and closes the file.
func (s *Store[T]) Close() error {
	s.turn <- struct{}{}
	defer s.passTurn()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.journal == nil {
		return nil
	}
	return s.journal.Close()
}

// lost is what it costs to begin with an empty store, for the log.
func lost[T registry.Object]() string {
	var none T
	if _, services := any(none).(*api.NetworkService); services {
		return "network services: those that an operator applied must be applied again with 'nsm apply'"
	}
	return "endpoints: those that run register again by themselves"
}

// decode makes an object of a record.
func decode[T registry.Object](payload []byte) (T, error) {
	var none T
	v := none.ProtoReflect().New().Interface().(T)
	if err := proto.Unmarshal(payload, v); err != nil {
		return none, err
	}
	if v.GetName() == "" {
		return none, errors.New("object has no name")
	}
	return v, nil
}
