// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"iter"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Object is what a registry keeps: *NetworkService or *NetworkServiceEndpoint
// of the api module. The nil pointer means "none".
//
// An object that has been given to a store or was got from one is immutable:
// it is shared by the store, its indexes, all watchers and all replies. Clone
// it to change it.
type Object = query.Object

// Stored is an object as a store has it. The zero value is none.
type Stored[T Object] struct {
	Object T
	// Encoded is Object as protobuf has it, Found the answer of a Find that finds it, and
	// Expires when it ceases to count, zero if never. They are made once: an object is in two
	// dozen places of memory, and a registry of many objects would wait for each of these
	// places whenever it encodes one.
	Encoded []byte
	Found   *rpc.Encoded
	Expires time.Time
}

// NewStored is v as a store has it.
func NewStored[T Object](v T) (Stored[T], error) {
	found := answer(v, false)
	wire, err := proto.Marshal(found)
	if err != nil {
		return Stored[T]{}, nserr.Internal.Errorf("encoding %q: %w", v.GetName(), err)
	}
	_, _, header := protowire.ConsumeTag(wire) // of the only field, which is v
	encoded, _ := protowire.ConsumeBytes(wire[header:])
	return Stored[T]{Object: v, Encoded: encoded, Found: &rpc.Encoded{Message: found, Wire: wire}, Expires: Expiry(v)}, nil
}

// answer is that of a Find, about one object.
func answer[T Object](v T, deleted bool) proto.Message {
	switch v := any(v).(type) {
	case *api.NetworkService:
		return &api.NetworkServiceResponse{NetworkService: v, Deleted: deleted}
	case *api.NetworkServiceEndpoint:
		return &api.NetworkServiceEndpointResponse{NetworkServiceEndpoint: v, Deleted: deleted}
	}
	return nil // there are no others
}

// Store keeps the objects of one kind by name. Stores are interchangeable;
// package storetest says in tests what is said here in words. All methods may
// be called concurrently, and every error is one of package nserr or the cause
// of ctx.
type Store[T Object] interface {
	// Find yields the objects that match template (query.Match), in no particular order,
	// each as it was at one moment of the call. A nil template matches
	// everything. The cost depends on the number of objects that have the
	// template's name or service, not on how many there are. An error is
	// yielded last. Expired objects that were not removed yet are included.
	Find(ctx context.Context, template T) iter.Seq2[Stored[T], error]

	// Watch follows what Find would give: a snapshot, then every change,
	// with nothing lost in between. The ctx counts for opening only.
	Watch(ctx context.Context, template T) (Watcher[T], error)

	// Update replaces the object called name, atomically: f gets the present
	// one, nil if none, and returns the next one; nil removes it. It may be
	// called several times and must not change old. An error from f is
	// returned as it is and changes nothing. Once Update has returned nil,
	// every Find sees the change, and it outlives a crash of this process if
	// the store is durable; removing an expired object may be forgotten,
	// since it is dropped when it is loaded. If Update returns an error,
	// nothing has changed and the store remains usable.
	//
	// Replacing an object by an equal one is a change that watchers see.
	Update(ctx context.Context, name string, f func(old T) (T, error)) (T, error)

	// Close releases the store. Calls and watchers must have ended before.
	Close() error
}

// Watcher follows a Store. Use it from one goroutine and close it in the end.
type Watcher[T Object] interface {
	// Next returns events in the order in which they happened. The first
	// call returns the snapshot at once, possibly empty; later calls wait.
	// Whoever is slow gets of each object only the latest change; a slow
	// watcher delays nobody. An object that stops matching the template
	// gives no event; a deleted one matches if its last state did.
	//
	// Next fails with the cause of ctx, or with nserr.WatchLost when so much
	// was deleted meanwhile that the store no longer knows what: watch again.
	Next(ctx context.Context) ([]Event[T], error)
	Close()
}

// Event is one change of one object.
type Event[T Object] struct {
	Stored[T] // of a deleted object: the last one
	Deleted   bool
}

// answer is the message that tells of e.
func (e Event[T]) answer() proto.Message {
	if e.Deleted {
		return answer(e.Object, true)
	}
	return e.Found
}

// Services returns the network services under which an index has to know v:
// those it offers and those it has labels for. A network service has none.
func Services[T Object](v T) []string {
	e, _ := any(v).(*api.NetworkServiceEndpoint)
	names := e.GetNetworkServiceNames()
	for name := range e.GetNetworkServiceLabels() {
		names = append(names[:len(names):len(names)], name)
	}
	return names
}

// Expiry returns the time at which v ceases to count; zero means never.
func Expiry[T Object](v T) time.Time {
	e, _ := any(v).(*api.NetworkServiceEndpoint)
	return query.Expiry(e)
}

// Expired reports whether v has ceased to count.
func Expired[T Object](v T, now time.Time) bool { return isPast(Expiry(v), now) }

func isPast(at, now time.Time) bool { return !at.IsZero() && !at.After(now) }

// Owner returns the SPIFFE ID that registered v, "" if nobody did under an
// identity. The name is that identity's until v is unregistered or expires.
func Owner[T Object](v T) string {
	if ids := v.GetPathIds(); len(ids) > 0 {
		return ids[0]
	}
	return ""
}
