// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Who may do what with a demo that was left running, and how.
func TestDoor(t *testing.T) {
	const root, ann, bob = 0, 1000, 1001
	own := keptDemo{Rights: userNamespace, owner: ann}
	seenInside := keptDemo{Rights: userNamespace, owner: root}
	bySudoOfAnn := keptDemo{Rights: bySudo, User: ann, owner: root}
	ofRoot := keptDemo{Rights: "root", owner: root}
	forged := keptDemo{Rights: bySudo, User: ann, owner: bob}
	for _, tt := range []struct {
		what     string
		demo     keptDemo
		uid      int
		inside   string
		sudoUser int
		want     door
	}{
		{"root", ofRoot, root, "", -1, openDoor},
		{"root, of a sudo user's", bySudoOfAnn, root, "", -1, openDoor},
		{"a sudo user's, by sudo typed", bySudoOfAnn, root, "", ann, openDoor},
		{"a sudo user's", bySudoOfAnn, ann, "", -1, sudoDoor},
		{"a sudo user's, there", bySudoOfAnn, root, bySudo, ann, openDoor},
		{"another sudo user's", bySudoOfAnn, bob, "", -1, noDoor},
		{"another sudo user's, there", bySudoOfAnn, root, bySudo, bob, noDoor},
		{"root's, as a user", ofRoot, ann, "", -1, noDoor},
		{"root's, as a user by sudo", ofRoot, root, bySudo, ann, noDoor},
		{"a user's", own, ann, "", -1, userNSDoor},
		{"a user's, there", seenInside, root, userNamespace, -1, openDoor},
		{"another user's", own, bob, "", -1, noDoor},
		{"a user's, as root", own, root, "", -1, noDoor},
		{"what somebody else says is a sudo user's", forged, ann, "", -1, noDoor},
	} {
		if got := tt.demo.door(tt.uid, tt.inside, tt.sudoUser); got != tt.want {
			t.Errorf("%s: door %d, want %d", tt.what, got, tt.want)
		}
	}
}

// What somebody else has written is not believed, and links are not followed.
func TestFindKept(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	k := keptDemo{Rights: "root", Nodes: map[string][]string{"a": {"X=1"}}, dir: filepath.Join(os.TempDir(), demoPrefix+"mine")}
	err := errors.Join(os.Mkdir(k.dir, 0o755), k.mark(),
		os.Symlink(k.dir, filepath.Join(os.TempDir(), demoPrefix+"link")),
		os.Mkdir(filepath.Join(os.TempDir(), demoPrefix+"running"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	found := findKept()
	if len(found) != 1 || found[0].name() != "nsm-demo-mine" || found[0].owner != os.Geteuid() || !slices.Equal(found[0].Nodes["a"], k.Nodes["a"]) {
		t.Errorf("found %+v", found)
	}
}

// Of several demos one has to be named, and only then.
func TestPick(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	keep := func(name string, since int64) {
		k := keptDemo{Rights: "root", dir: filepath.Join(os.TempDir(), demoPrefix+name)}
		at := time.Unix(since, 0)
		if err := errors.Join(os.Mkdir(k.dir, 0o755), k.mark(), os.Chtimes(filepath.Join(k.dir, keptFile), at, at)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, want string) {
		t.Helper()
		k, _, err := pick(demoName(name))
		if got := k != nil; err != nil || got != (want != "") || got && k.short() != want {
			t.Errorf("%q: %+v, %v, want %q", name, k, err, want)
		}
	}
	check("", "")
	keep("second", 2)
	check("", "second")
	check("other", "")
	keep("first", 1)
	check("first", "first")
	check("second", "second")
	for _, args := range [][]string{{"demo", "--stop"}, {"demo", "--on", "a", "--", "true"}} {
		_, stderr, code := runAgainst(t, nil, "", args...)
		if code != exitUsage || !regexp.MustCompile(`first \(since .*\), second \(since .*\(fix: say which, such as --name second\)`).MatchString(stderr) {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
	for _, args := range [][]string{{"demo", "--stop", "--name", "third"}, {"demo", "--on", "a", "--name", "third"}} {
		if _, stderr, code := runAgainst(t, nil, "", args...); code != exitNotFound || !strings.Contains(stderr, "no demo third of yours") {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
	// The variable is the flag's, and may have the name of the lab.
	t.Setenv(nameVar, "nsm-demo-first")
	if out, stderr, code := runAgainst(t, nil, "", "demo", "--stop"); code != exitOK || out != "stopped nsm-demo-first\n" {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}
	check("", "second")
}

// What another lab's things could be taken for is no name, nor is one that is taken.
func TestDemoName(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, name := range []string{"a-b", "nsm-demo-", "nsm-demo-nsm-demo-a", "A", "*", "../a", "a b", "abcdefghijklmnopq"} {
		if err := new(demoName).UnmarshalText([]byte(name)); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
	var n demoName
	if err := n.UnmarshalText([]byte("abcdefghijklmn09")); err != nil {
		t.Fatal(err)
	}
	if name, err := n.newLab(); err != nil || name != "nsm-demo-abcdefghijklmn09" {
		t.Errorf("%q, %v", name, err)
	}
	if err := os.Mkdir(filepath.Join(os.TempDir(), "nsm-demo-abcdefghijklmn09"), 0o755); err != nil {
		t.Fatal(err)
	}
	if name, err := n.newLab(); !errors.Is(err, nserr.BadFlag) {
		t.Errorf("a second one: %q, %v", name, err)
	}
}

// A transfer is made again, with less to send, while the capture loses packets, and
// not for ever.
func TestTransferSeenWholly(t *testing.T) {
	for _, tt := range []struct {
		name   string
		keepUp int // what the capture can read
		want   []int
		lost   bool
	}{
		{"at once", textTimes, []int{200_000}, false},
		{"a little slow", 50_000, []int{200_000, 20_000}, false},
		{"hopeless", 0, []int{200_000, 20_000, 2_000, 200}, true},
	} {
		var made []int
		var out bytes.Buffer
		seen, get, err := newNarrator(&out).wholly(func(times int) (lab.Captured, measured, error) {
			made = append(made, times)
			return lab.Captured{Lost: max(0, times-tt.keepUp)}, measured{Bytes: int64(times)}, nil
		})
		if err != nil || !slices.Equal(made, tt.want) || seen.Lost > 0 != tt.lost || get.Bytes != int64(made[len(made)-1]) {
			t.Errorf("%s: transfers %v, want %v; at last %+v, %+v, %v", tt.name, made, tt.want, seen, get, err)
		}
		if said := strings.Count(out.String(), "again"); said != len(tt.want)-1 {
			t.Errorf("%s: said %q", tt.name, out.String())
		}
	}
	failed := errors.New("no route")
	if _, _, err := newNarrator(&bytes.Buffer{}).wholly(func(int) (lab.Captured, measured, error) {
		return lab.Captured{Lost: 1}, measured{}, failed
	}); err != failed {
		t.Errorf("ended with %v", err)
	}
}

func TestShellWord(t *testing.T) {
	for _, word := range []string{"/usr/bin/nsm", "/opt/a b/nsm", "it's", "$HOME", "ü"} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellWord(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%s is %q for a shell, %v", shellWord(word), out, err)
		}
	}
}
