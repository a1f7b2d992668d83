// SPDX-License-Identifier: Apache-2.0

// Package storetest is the conformance suite of registry stores. A store that
// passes may stand behind a registry:
//
//	func TestConformance(t *testing.T) {
//		storetest.Run(t, func(t *testing.T, state string) storetest.Stores { … }, storetest.Options{Durable: true})
//	}
package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/openvwire/nsm/registry"
)

// Stores are the two stores of a registry.
type Stores struct {
	Services  registry.Store[*api.NetworkService]
	Endpoints registry.Store[*api.NetworkServiceEndpoint]
}

func (s Stores) close(t testing.TB) {
	t.Helper()
	if err := errors.Join(s.Services.Close(), s.Endpoints.Close()); err != nil {
		t.Errorf("closing the stores: %v", err)
	}
}

// Open opens stores over the state with this name, an empty directory that
// nobody else uses; a store elsewhere takes it as a unique prefix. Opening the
// same state again after closing is a restart.
type Open func(t testing.TB, state string) Stores

// Options say what may be asked of a store.
type Options struct {
	Durable bool // state outlives Close
	Network bool // cannot run in a synctest bubble; expiry is waited for in real time
}

// Run tests the stores that open returns.
func Run(t *testing.T, open Open, o Options) {
	s := suite{open, o}
	t.Run("Update", s.testUpdate)
	t.Run("Find", s.testFind)
	t.Run("Watch", s.testWatch)
	t.Run("Cancel", s.testCancel)
	t.Run("SlowWatcher", s.testSlowWatcher)
	t.Run("WatchMissesNothing", s.testWatchMissesNothing)
	t.Run("ConcurrentUpdates", s.testConcurrentUpdates)
	t.Run("Model", s.testModel)
	t.Run("Ownership", s.testOwnership)
	t.Run("Operator", s.testOperator)
	t.Run("Expiry", s.testExpiry)
	if o.Durable {
		t.Run("Restart", s.testRestart)
	}
}

type suite struct {
	open Open
	Options
}

// endpoints opens fresh stores and returns the one for endpoints, which has
// every property that the other has.
func (s suite) endpoints(t *testing.T) registry.Store[*api.NetworkServiceEndpoint] {
	stores := s.open(t, t.TempDir())
	t.Cleanup(func() { stores.close(t) })
	return stores.Endpoints
}

// bubble runs f with time that passes only when everybody waits.
func (s suite) bubble(t *testing.T, f func(t *testing.T)) {
	if s.Network {
		f(t)
		return
	}
	synctest.Test(t, f)
}

func endpoint(name string, services ...string) *api.NetworkServiceEndpoint {
	return &api.NetworkServiceEndpoint{Name: name, NetworkServiceNames: services, Url: "tcp://" + name}
}

func put(t testing.TB, s registry.Store[*api.NetworkServiceEndpoint], nse *api.NetworkServiceEndpoint) {
	t.Helper()
	_, err := s.Update(context.Background(), nse.GetName(), func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
		return nse, nil
	})
	if err != nil {
		t.Fatalf("storing %q: %v", nse.GetName(), err)
	}
}

func remove(t testing.TB, s registry.Store[*api.NetworkServiceEndpoint], name string) {
	t.Helper()
	_, err := s.Update(context.Background(), name, func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
		return nil, nil
	})
	if err != nil {
		t.Fatalf("removing %q: %v", name, err)
	}
}

// found returns what Find gives, by name.
func found[T registry.Object](t testing.TB, s registry.Store[T], template T) map[string]T {
	t.Helper()
	all := make(map[string]T)
	for v, err := range s.Find(context.Background(), template) {
		if err != nil {
			t.Fatalf("Find(%v): %v", template, err)
		}
		name := v.Object.GetName()
		if _, twice := all[name]; twice {
			t.Fatalf("Find(%v) gives %q twice", template, name)
		}
		checkStored(t, v)
		all[name] = v.Object
	}
	return all
}

// checkStored checks that what a store has made of an object belongs to it.
func checkStored[T registry.Object](t testing.TB, v registry.Stored[T]) {
	t.Helper()
	decoded := v.Object.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(v.Encoded, decoded); err != nil || !proto.Equal(decoded, v.Object) {
		t.Fatalf("%v is encoded as %v (%v)", v.Object, decoded, err)
	}
	sent := v.Found.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(v.Found.Wire, sent); err != nil || !proto.Equal(sent, v.Found) {
		t.Fatalf("%v is sent as %v (%v)", v.Found, sent, err)
	}
	if !v.Expires.Equal(registry.Expiry(v.Object)) {
		t.Fatalf("%v expires at %v", v.Object, v.Expires)
	}
}

func names[T any](m map[string]T) []string {
	list := make([]string, 0, len(m))
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// diffEndpoints is a diff that costs little when there is none.
func diffEndpoints(want, got map[string]*api.NetworkServiceEndpoint) string {
	if maps.EqualFunc(want, got, func(a, b *api.NetworkServiceEndpoint) bool { return proto.Equal(a, b) }) {
		return ""
	}
	return diff(want, got)
}

// diff compares messages, or maps and lists of them.
func diff(want, got any) string { return cmp.Diff(want, got, protocmp.Transform()) }

func watchEndpoints(t testing.TB, s registry.Store[*api.NetworkServiceEndpoint], template *api.NetworkServiceEndpoint) *view {
	t.Helper()
	w, err := s.Watch(context.Background(), template)
	if err != nil {
		t.Fatalf("Watch(%v): %v", template, err)
	}
	return &view{t: t, w: w, state: make(map[string]*api.NetworkServiceEndpoint)}
}

// view is what a watcher has been told.
type view struct {
	t     testing.TB
	w     registry.Watcher[*api.NetworkServiceEndpoint]
	state map[string]*api.NetworkServiceEndpoint
}

// next applies the next events.
func (v *view) next() {
	v.t.Helper()
	events, err := v.w.Next(context.Background())
	if err != nil {
		v.t.Fatalf("Next: %v", err)
	}
	v.apply(events)
}

func (v *view) apply(events []registry.Event[*api.NetworkServiceEndpoint]) {
	for _, e := range events {
		checkStored(v.t, e.Stored)
		name := e.Object.GetName()
		if e.Deleted {
			delete(v.state, name)
		} else {
			v.state[name] = e.Object
		}
	}
}

// until applies events until the view is as wanted.
func (v *view) until(what string, done func() bool) {
	v.t.Helper()
	for n := 0; !done(); n++ {
		if n > 1_000_000 {
			v.t.Fatalf("no end of events before %s", what)
		}
		v.next()
	}
}

func url(i int) string { return fmt.Sprintf("tcp://10.0.0.1:%d", i) }
