// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/wireguard/mux"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Tunnel is the one WireGuard device that many wires share (package mux). A holder has
// at most one.
type Tunnel struct {
	Node uint32 `json:"node"` // id of this node in it
	UAPI string `json:"uapi"` // name by which it is configured
}

// Wire is a wire of the tunnel.
type Wire struct {
	Tag      string `json:"tag"`   // chosen by the forwarder, unique in the holder, among devices too
	Name     string `json:"name"`  // of the interface, in its namespace
	NetNS    string `json:"netns"` // that namespace, "dev:ino" of its nsfs inode
	MTU      int    `json:"mtu"`   // bytes, at creation
	Ethernet bool   `json:"ethernet,omitempty"`

	Local  uint32 `json:"local"`            // number by which it receives
	Remote uint32 `json:"remote,omitempty"` // number by which the other end does; 0: not known yet
	Peer   uint32 `json:"peer,omitempty"`   // id of the other end's node

	// What has gone through it, in bytes, and when the last packet came, in nanoseconds
	// since 1970; only in an answer that was asked for one wire.
	Sent         uint64 `json:"sent,omitempty"`
	Received     uint64 `json:"received,omitempty"`
	LastReceived int64  `json:"last_received,omitempty"`
}

// Left says how many wires still lead to a node to which one leads no more.
type Left struct {
	Peer  uint32 `json:"peer"`
	Wires int    `json:"wires"`
}

// tunnelTag is what [DeviceName] makes the name of the tunnel of.
const tunnelTag = "tunnel"

// tunnelMTU is the largest MTU that there is, in bytes: wires have their own, which are
// such that WireGuard's padding fits (plan.SharedMTU).
const tunnelMTU = 1<<16 - 1

// shared is the running tunnel.
type shared struct {
	Tunnel
	dev *device
	mux *mux.Device
}

// muxLink is the mux as a link: there is nothing to look for.
type muxLink struct{ *mux.Device }

func (muxLink) refresh() {}

// openTunnel returns the tunnel, which is made if there is none.
func (s *server) openTunnel(node uint32) (*Tunnel, error) {
	sl := s.take(tunnelTag)
	defer s.release(tunnelTag, sl)
	s.mu.Lock()
	t, stopping := s.tunnel, s.stopping
	s.mu.Unlock()
	switch {
	case t != nil:
		return &t.Tunnel, nil
	case stopping:
		return nil, nserr.Stopping.Errorf("WireGuard holder is ending")
	case node == 0:
		return nil, nserr.BadRequest.Errorf("no id of this node")
	}
	t = &shared{Tunnel: Tunnel{Node: node, UAPI: DeviceName(s.cfg.Socket, tunnelTag)}}
	listener, err := listenUAPI(t.UAPI)
	if err != nil {
		return nil, err
	}
	log := s.cfg.Logger.With("tag", tunnelTag)
	if t.mux, err = mux.New(mux.Config{NodeID: node, MTU: tunnelMTU, Gone: s.wireGone, Logger: log}); err != nil {
		_ = listener.Close()
		return nil, err
	}
	t.dev = startDevice(Device{UAPI: t.UAPI, MTU: tunnelMTU}, muxLink{t.mux}, listener, &s.buffers, log)
	s.mu.Lock()
	s.tunnel = t
	s.mu.Unlock()
	s.running.Go(func() { s.watchTunnel(t) })
	return &t.Tunnel, nil
}

// watchTunnel forgets the tunnel when it ends, and its wires.
func (s *server) watchTunnel(t *shared) {
	<-t.dev.gone
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel != t {
		return
	}
	s.tunnel = nil
	for tag, sl := range s.slots {
		sl.wire = nil
		s.forgetLocked(tag, sl)
	}
	s.litterLocked()
	s.idleLocked()
	s.cfg.Logger.Error("the tunnel has ended by itself")
}

// closeTunnel deletes it, with whatever wires it has.
func (s *server) closeTunnel() {
	s.mu.Lock()
	t := s.tunnel
	s.tunnel = nil
	s.mu.Unlock()
	if t != nil {
		t.dev.close()
	}
}

// addWire makes a wire that leads nowhere yet, or leaves the one that is there already.
// One with this tag in another namespace, under another name or number is replaced. It
// takes ownership of file, the namespace.
func (s *server) addWire(req *request, file *os.File) error {
	key, err := s.namespaces.Add(file)
	if err != nil {
		return err
	}
	defer s.namespaces.Release(key)
	ns, err := s.namespaces.Get(key)
	if err != nil {
		return err
	}
	if req.Tag == "" || req.Tag == tunnelTag || req.Local == 0 {
		return nserr.BadRequest.Errorf("no tag, or no number")
	}
	want := Wire{Tag: req.Tag, Name: req.Name, NetNS: key, MTU: req.MTU, Ethernet: req.Ethernet, Local: req.Local}
	sl := s.take(req.Tag)
	defer s.release(req.Tag, sl)
	s.mu.Lock()
	t, stopping, dev, is := s.tunnel, s.stopping, sl.dev, sl.wire
	s.mu.Unlock()
	switch {
	case stopping:
		return nserr.Stopping.Errorf("WireGuard holder is ending")
	case t == nil:
		return nserr.BadRequest.Errorf("there is no tunnel")
	case is != nil && is.sameAs(want):
		return nil
	}
	if dev != nil {
		s.drop(sl, dev)
	}
	s.dropWire(sl)
	kind := uint16(unix.IFF_TUN)
	if want.Ethernet {
		kind = unix.IFF_TAP
	}
	var fd, ctl int
	if err := ns.Do(func() (err error) {
		fd, ctl, err = openTUN(want.Name, want.MTU, kind)
		return err
	}); err != nil {
		return err
	}
	_ = unix.Close(ctl)
	// The slot has it before the mux does: that may find at once that it is gone.
	s.mu.Lock()
	sl.wire = &want
	s.mu.Unlock()
	if err := t.mux.Add(mux.Wire{FD: fd, Ethernet: want.Ethernet, Local: want.Local}); err != nil { // fd is closed
		s.mu.Lock()
		sl.wire = nil
		s.mu.Unlock()
		return err
	}
	return nil
}

// sameAs reports whether w is one that was asked for as want.
func (w *Wire) sameAs(want Wire) bool {
	return w.Name == want.Name && w.NetNS == want.NetNS && w.Ethernet == want.Ethernet && w.Local == want.Local
}

// point has a wire lead to its other end.
func (s *server) point(req *request) (*Left, error) {
	sl := s.take(req.Tag)
	defer s.release(req.Tag, sl)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel == nil || sl.wire == nil {
		return nil, nserr.KernelFailed.Errorf("there is no wire %s in the tunnel", req.Tag)
	}
	if err := s.tunnel.mux.Point(sl.wire.Local, req.Peer, req.Remote); err != nil {
		return nil, err
	}
	was := sl.wire.Peer
	now := *sl.wire
	now.Peer, now.Remote = req.Peer, req.Remote
	sl.wire = &now
	return s.leftLocked(was), nil
}

// dropWire deletes the slot's wire, if it has one. The caller has the slot's turn.
func (s *server) dropWire(sl *slot) *Left {
	s.mu.Lock()
	w, t := sl.wire, s.tunnel
	sl.wire = nil
	s.mu.Unlock()
	if w == nil {
		return nil
	}
	if t != nil {
		_ = t.mux.Remove(w.Local)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leftLocked(w.Peer)
}

// leftLocked counts the wires that lead to a node.
func (s *server) leftLocked(peer uint32) *Left {
	if peer == 0 {
		return nil
	}
	left := &Left{Peer: peer}
	for _, sl := range s.slots {
		if sl.wire != nil && sl.wire.Peer == peer {
			left.Wires++
		}
	}
	return left
}

// wireGone forgets a wire whose interface somebody else has deleted.
func (s *server) wireGone(local uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for tag, sl := range s.slots {
		if sl.wire != nil && sl.wire.Local == local {
			s.cfg.Logger.Info("interface of a wire was deleted by somebody else", "tag", tag, "interface", sl.wire.Name)
			sl.wire = nil
			s.forgetLocked(tag, sl)
			s.idleLocked()
			return
		}
	}
}

// wires returns the tunnel, nil if there is none, and its wires ordered by tag; with a
// tag only that wire, and what has gone through it.
func (s *server) wires(tag string) (*Tunnel, []Wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel == nil {
		return nil, nil
	}
	if tag != "" {
		sl := s.slots[tag]
		if sl == nil || sl.wire == nil {
			return &s.tunnel.Tunnel, nil
		}
		w := *sl.wire
		if seen, ok := s.tunnel.mux.Stats(w.Local); ok {
			w.Sent, w.Received = seen.Sent.Bytes, seen.Received.Bytes
			if !seen.LastReceived.IsZero() {
				w.LastReceived = seen.LastReceived.UnixNano()
			}
		}
		return &s.tunnel.Tunnel, []Wire{w}
	}
	var wires []Wire
	for _, sl := range s.slots {
		if sl.wire != nil {
			wires = append(wires, *sl.wire)
		}
	}
	slices.SortFunc(wires, func(a, b Wire) int { return strings.Compare(a.Tag, b.Tag) })
	return &s.tunnel.Tunnel, wires
}

// Last is when the last packet came through the wire, zero if none has.
func (w Wire) Last() time.Time {
	if w.LastReceived == 0 {
		return time.Time{}
	}
	return time.Unix(0, w.LastReceived)
}
