// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// locals are the endpoints, forwarders among them, that registered through this
// manager: where the node itself reaches them, while the rest of the domain is
// told the manager's address (protocol.md §3.6).
//
// turns serialises what happens to one name and holds its expiry; byName is what
// everybody else reads.
type locals struct {
	turns *conn.Table[local]

	mu     sync.RWMutex
	byName map[string]*local // guarded by mu; values are immutable
}

// local is one endpoint of this node.
type local struct {
	nse     *registry.NetworkServiceEndpoint // as it registered, with its own URL; immutable
	owner   string                           // SPIFFE ID that registered it
	expires time.Time
	release func() // lets go of its Unix socket
}

func newLocals(expired func(ctx context.Context, name string)) *locals {
	return &locals{turns: conn.NewTable[local](expired), byName: make(map[string]*local)}
}

func (l *locals) get(name string) (*local, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	e, ok := l.byName[name]
	return e, ok
}

// set publishes e under its name, nil to remove it. The turn of the name must be
// held.
func (l *locals) set(name string, e *local) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e == nil {
		delete(l.byName, name)
	} else {
		l.byName[name] = e
	}
}

// forwarders returns the local endpoints of the given service by name.
func (l *locals) forwarders(service string, now time.Time) []forwarder {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var out []forwarder
	for _, name := range slices.Sorted(maps.Keys(l.byName)) {
		e := l.byName[name]
		if slices.Contains(e.nse.GetNetworkServiceNames(), service) && e.expires.After(now) {
			out = append(out, forwarder{nse: e.nse, url: e.nse.GetUrl()})
		}
	}
	return out
}

func (l *locals) close() {
	l.turns.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.byName {
		e.release()
	}
	clear(l.byName)
}

// receiveSocket claims the endpoint's Unix socket if its URL names one, and holds
// it until release is called.
func (m *Manager) receiveSocket(ctx context.Context, url string) (release func(), err error) {
	switch {
	case isInode(url):
		f, err := rpc.ReceiveFile(ctx, url)
		if err != nil {
			return nil, err
		}
		return m.config.Sockets.Hold(url, f), nil
	case strings.HasPrefix(url, "unix://"), strings.HasPrefix(url, "tcp://"), strings.HasPrefix(url, "inproc://"):
		return func() {}, nil
	case url == "":
		return nil, nserr.BadEndpoint.Errorf("the endpoint has no URL")
	}
	return nil, nserr.BadEndpoint.Errorf("endpoint URL %.80q is none of unix://, tcp:// and inode://", url)
}

func isInode(url string) bool { return strings.HasPrefix(url, "inode://") }
