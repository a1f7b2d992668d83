// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"io"
	"os"
	"testing"
)

func (b *inbox) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.files)
}

// What all connections of a user hold together is bounded, as is their number;
// others have their own, and whatever goes gives its place back.
func TestQuota(t *testing.T) {
	q := newQuota()
	boxOf := func(uid uint32) *inbox {
		b := new(inbox)
		b.quota, b.uid = q, uid
		t.Cleanup(b.close)
		return b
	}
	f := tempFile(t, "")
	fill := func(b *inbox, n int) {
		for range n {
			if err := b.sendTo([]*os.File{f}); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, second, third, other := boxOf(1000), boxOf(1000), boxOf(1000), boxOf(1001)
	fill(first, maxUserFiles) // no more than maxFiles stay
	fill(second, maxUserFiles-maxFiles-1)
	fill(third, 3) // one of them stays, the last
	fill(other, 1)
	for b, want := range map[*inbox]int{first: maxFiles, second: maxUserFiles - maxFiles - 1, third: 1, other: 1} {
		if got := b.len(); got != want {
			t.Errorf("user %d has %d files in a box, want %d", b.uid, got, want)
		}
	}
	i, _ := inodeOf(f)
	got, err := first.claim(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
	fill(third, 1)
	if third.len() != 2 {
		t.Error("a claimed descriptor has not given its place back")
	}
	for _, b := range []*inbox{first, second, third, other} {
		b.close()
		b.close()
	}
	for range maxUserConns {
		if !q.add(1000, 1, 0) {
			t.Fatal("too few connections")
		}
	}
	if q.add(1000, 1, 0) || !q.add(1001, 1, 0) || !q.add(0, 2*maxUserConns, 0) {
		t.Error("connections are not counted by user")
	}
	q.add(1000, -maxUserConns, 0)
	q.add(1001, -1, 0)
	if len(q.users) != 0 {
		t.Errorf("left: %v", q.users)
	}
}

// Descriptors that come ahead of the handshake, from nobody in particular, are not
// kept; those after it are.
func TestDescriptorsBeforeTLS(t *testing.T) {
	a, b := socketPair(t)
	sender, c := fileConnOf(t, a), fileConnOf(t, b)
	defer sender.Close()
	defer c.Close()
	f := tempFile(t, "")
	var during int
	inner := func(fc *fileConn) error {
		if err := sender.send([]*os.File{f, f, f}); err != nil {
			return err
		}
		if _, err := sender.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := io.ReadFull(fc, make([]byte, 5))
		during = fc.inbox.len()
		return err
	}
	if err := c.handshake(func() error { return inner(c) }); err != nil {
		t.Fatal(err)
	}
	if during != 0 || c.inbox.len() != 0 {
		t.Errorf("%d descriptors are kept during the handshake, %d after it", during, c.inbox.len())
	}
	if err := inner(c); err != nil || during != 3 {
		t.Errorf("%d descriptors are kept later on, %v", during, err)
	}
}
