"""The networks: teachers that are only read, students that learn from them, and hashers that turn features to codes."""

from distilhash.models.backbone import Backbone
from distilhash.models.hasher import HasherNetwork, create_hasher, load_published_student, new_hasher, rebuild_backbone
from distilhash.models.registry import register
from distilhash.models.student import STEMS, STUDENTS, Student, create_student, is_student, new_student
from distilhash.models.teacher import TEACHERS, Teacher, create_teacher, is_teacher, open_teacher

__all__ = [
    "STEMS", "STUDENTS", "TEACHERS", "Backbone", "HasherNetwork", "Student", "Teacher", "create_hasher",
    "create_student", "create_teacher", "is_student", "is_teacher", "load_published_student", "new_hasher",
    "new_student", "open_teacher", "rebuild_backbone", "register",
]  # fmt: skip
