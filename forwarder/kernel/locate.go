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
	aside  netlink.Link // one that was set aside; nil: none
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
		tag := plan.Tag{Owner: owner, ID: wireID, Side: side}
		if k.names[tag.String()] != "" || k.names[tag.SetAside().String()] != "" {
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

// sought is what the links of an end are known by.
type sought struct {
	name       string // that it is to have
	tag, aside string
	mac        string
}

func soughtOf(w plan.Wire, e plan.End) sought {
	return sought{name: e.Name, tag: w.Tag(e.Side).String(), aside: w.Tag(e.Side).SetAside().String(), mac: macOf(w, e)}
}

// locate finds the links of one end.
func (s *site) locate(w plan.Wire, e plan.End) (located, error) {
	what := soughtOf(w, e)
	hint, listed := s.known.hint(what.tag, what.mac)
	aside, _ := s.known.hint(what.aside, "")
	if listed {
		found, sure, err := s.locateByName(what, hint, aside)
		if err != nil || sure {
			return found, err
		}
		s.known.forget(what.tag, what.aside, what.mac)
	}
	links, err := dump(s.nl.LinkList)
	if err != nil {
		return located{}, err
	}
	s.known.learn(w.Owner, links)
	return choose(links, what), nil
}

// locateByName asks for the names that the links can have. It is unsure if there was
// a hint and it was wrong.
func (s *site) locateByName(what sought, hint, aside string) (found located, sure bool, err error) {
	var links []netlink.Link
	asked := map[string]bool{"": true}
	for _, name := range []string{what.name, hint, aside} {
		if asked[name] {
			continue
		}
		asked[name] = true
		l, err := s.nl.LinkByName(name)
		if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return located{}, false, err
		}
		links = append(links, l)
	}
	found = choose(links, what)
	return found, (hint == "" || found.link != nil) && (aside == "" || found.aside != nil), nil
}

// choose picks the end's links from links.
func choose(links []netlink.Link, what sought) (found located) {
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.Alias == what.tag:
			found.link, found.tagged = l, true
		case a.Alias == what.aside:
			found.aside = l
		case a.Alias == "" && a.HardwareAddr.String() == what.mac && !found.tagged:
			found.link = l
		}
	}
	for _, l := range links {
		if l.Attrs().Name == what.name && l != found.link {
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
