// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
)

// located is where an end of a wire was found.
type located struct {
	link   netlink.Link // nil: nowhere
	tagged bool         // by its alias; otherwise by its MAC address alone
	taken  bool         // another link has the end's name
}

// known is what a Kernel remembers of a namespace, for as long as the table
// holds it: under which name it saw which tag. A namespace with a thousand
// wires takes milliseconds to list; this makes one look-up by name of it.
//
// It is a hint and never trusted: a link counts as found only when the kernel
// shows it with the right tag, and a hint that turns out wrong leads to a new
// list. That nothing is remembered is trusted, once the namespace has been
// listed: nobody else makes links with this owner's tags.
type known struct {
	pingOpen atomic.Bool // ping sockets were seen open; nobody closes them again

	mu     sync.Mutex
	listed bool
	names  map[string]string // by alias, or by MAC address where there is none
}

func newKnown() *known { return &known{names: make(map[string]string)} }

func (k *known) hint(tag, mac string) (name string, listed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if name = k.names[tag]; name == "" {
		name = k.names[mac]
	}
	return name, k.listed
}

// hasNone reports whether the namespace is sure to have no link of a wire.
func (k *known) hasNone(owner, wireID string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, side := range []plan.Side{plan.Client, plan.Endpoint} {
		if k.names[plan.Tag{Owner: owner, ID: wireID, Side: side}.String()] != "" {
			return false
		}
	}
	return k.listed
}

func (k *known) remember(tag, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.names[tag] = name
}

func (k *known) forget(keys ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		delete(k.names, key)
	}
}

// learn adds what a list shows of one owner's links, and of links without
// alias, which may be half made.
func (k *known) learn(owner string, links []netlink.Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listed = true
	for _, l := range links {
		a := l.Attrs()
		if tag, ok := plan.ParseTag(a.Alias); ok && tag.Owner == owner {
			k.names[a.Alias] = a.Name
		} else if a.Alias == "" && len(a.HardwareAddr) == 6 {
			k.names[a.HardwareAddr.String()] = a.Name
		}
	}
}

// locate finds the link of one end.
func (s *site) locate(w plan.Wire, e plan.End) (located, error) {
	tag, mac := w.Tag(e.Side).String(), macOf(w, e)
	name, listed := s.known.hint(tag, mac)
	if listed {
		found, sure, err := s.locateByName(e.Name, name, tag, mac)
		if err != nil || sure {
			return found, err
		}
		s.known.forget(tag, mac)
	}
	links, err := dump(s.nl.LinkList)
	if err != nil {
		return located{}, err
	}
	s.known.learn(w.Owner, links)
	return choose(links, e.Name, tag, mac), nil
}

// locateByName asks for the two names that the link can have. It is unsure if
// there was a hint and it was wrong.
func (s *site) locateByName(wanted, hint, tag, mac string) (found located, sure bool, err error) {
	var links []netlink.Link
	for _, name := range []string{wanted, hint} {
		if name == "" || (name == wanted && len(links) > 0) {
			continue
		}
		l, err := s.nl.LinkByName(name)
		if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return located{}, false, err
		}
		links = append(links, l)
	}
	found = choose(links, wanted, tag, mac)
	return found, hint == "" || found.link != nil, nil
}

// choose picks the end's link from links.
func choose(links []netlink.Link, name, tag, mac string) (found located) {
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.Alias == tag:
			found.link, found.tagged = l, true
		case a.Alias == "" && a.HardwareAddr.String() == mac && !found.tagged:
			found.link = l
		}
	}
	for _, l := range links {
		if l.Attrs().Name == name && l != found.link {
			found.taken = true
		}
	}
	return found
}

func macOf(w plan.Wire, e plan.End) string {
	if e.MAC != nil {
		return e.MAC.String()
	}
	return plan.MAC(w.ID, e.Side).String()
}
